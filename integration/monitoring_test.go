package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// monitoring is where the alerts and the dashboard are.
const monitoring = "../docs/monitoring"

func TestAlertRules(t *testing.T) {
	do(t, "promtool", "check", "rules", monitoring+"/alerts.yml")
	do(t, "promtool", "test", "rules", monitoring+"/alerts_test.yml")
}

// freePort is a port of the loopback that nobody has at the moment.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

// A real Prometheus scrapes a real service over the network, with the alerts loaded.
func TestPrometheusWatchesTheService(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a-token-of-the-tests-0123456789\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	v := newHydratedSite(t, "--listen", "127.0.0.1:"+port, "--token-file", token)
	v.thinctl("pool", "create", "fast", "--size", "64MiB", "--dir", v.path("pool"))
	made := makeImage(t, v.path("image"), 16*mib, 9, mixed)
	id := v.post(v.path("image"), "fast/moved", "0")
	v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
	if o := v.run("verify", "--service", v.socket, id); o.code != 0 || made.bytes == 0 {
		t.Errorf("verify: %v", o)
	}
	scrape := string(v.ask(200, "GET", "/metrics", ""))
	wantGoodMetrics(t, scrape)
	wantKnownMetrics(t, scrape)

	p := newPrometheus(t, port, token)
	p.await(`up{job="decant"}`, "1")
	p.await(`decant_migrations{state="done"}`, "1")
	p.await(`count(decant_build_info)`, "1")
	p.await(`decant_pool_used_bytes{pool="fast"} > bool 0`, "1")
	p.await(`decant_copied_bytes_total > bool 0`, "1")
	p.wantHealthyRules()
	// Without the service the series says so, and the alert is on its way.
	v.daemon.signal(15)
	v.daemon.wait()
	p.await(`up{job="decant"}`, "0")
	p.await(`count(ALERTS{alertname="DecantDown", alertstate="pending"})`, "1")
}

// wantGoodMetrics has promtool judge names and help texts.
func wantGoodMetrics(t *testing.T, scrape string) {
	t.Helper()
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(scrape)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// wantKnownMetrics wants every metric that alerts, dashboard and README name in the scrape.
func wantKnownMetrics(t *testing.T, scrape string) {
	t.Helper()
	name := regexp.MustCompile(`\bdecant_[a-z_]+[a-z]\b`)
	suffix := regexp.MustCompile(`_(bucket|sum|count)$`)
	// Of a pool without metadata of its own there is nothing to tell.
	elsewhere := []string{"decant_pool_metadata_blocks", "decant_pool_metadata_used_blocks", "decant_api_event_streams_refused_total"}
	for _, file := range []string{"alerts.yml", "grafana-dashboard.json", "README.md"} {
		text, err := os.ReadFile(filepath.Join(monitoring, file))
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(file) == ".json" && !json.Valid(text) {
			t.Errorf("%s is no JSON", file)
		}
		found := name.FindAllString(string(text), -1)
		if len(found) < 10 {
			t.Errorf("%s names %d metrics", file, len(found))
		}
		for _, metric := range found {
			family := suffix.ReplaceAllString(metric, "")
			if !strings.Contains(scrape, "# TYPE "+family+" ") && !slices.Contains(elsewhere, family) {
				t.Errorf("%s names %s, which the service does not have", file, metric)
			}
		}
	}
}

// prometheus is a server of that name in a directory of the test.
type prometheus struct {
	*testing.T
	base string
}

func newPrometheus(t *testing.T, target, token string) *prometheus {
	t.Helper()
	dir, port := t.TempDir(), freePort(t)
	rules, err := filepath.Abs(monitoring + "/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(monitoring + "/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("localhost:9640", "127.0.0.1:"+target, "/etc/prometheus/decant.token", token,
		"/etc/prometheus/decant/alerts.yml", rules, "15s", "1s").Replace(string(config)) + "\nglobal:\n  evaluation_interval: 1s\n"
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	do(t, "promtool", "check", "config", file)
	cmd := exec.Command("prometheus", "--config.file="+file, "--storage.tsdb.path="+dir+"/data", "--web.listen-address=127.0.0.1:"+port)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // nothing of it is kept
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("prometheus said: %s", text)
		}
		_ = log.Close() // its text was read
	})
	return &prometheus{T: t, base: "http://127.0.0.1:" + port}
}

// ask asks its API, and fails the test only when it has answered.
func (p *prometheus) ask(path string, into any) error {
	response, err := http.Get(p.base + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(into)
}

// await waits until a query has one result with that value.
func (p *prometheus) await(query, want string) {
	p.Helper()
	for begun := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		var answer struct {
			Error string
			Data  struct {
				Result []struct{ Value [2]any }
			}
		}
		err := p.ask("/api/v1/query?query="+url.QueryEscape(query), &answer)
		if r := answer.Data.Result; err == nil && len(r) == 1 && r[0].Value[1] == want {
			return
		}
		if time.Since(begun) > patience {
			p.Fatalf("%s never became %s: %+v, %v", query, want, answer, err)
		}
	}
}

// wantHealthyRules waits until every rule was evaluated, without an error.
func (p *prometheus) wantHealthyRules() {
	p.Helper()
	for begun := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		var answer struct {
			Data struct {
				Groups []struct {
					Rules []struct{ Name, Health, LastError string }
				}
			}
		}
		err := p.ask("/api/v1/rules", &answer)
		rules, good := 0, 0
		for _, g := range answer.Data.Groups {
			for _, r := range g.Rules {
				rules++
				if r.Health == "ok" {
					good++
				}
			}
		}
		if err == nil && rules == 10 && good == rules {
			return
		}
		if time.Since(begun) > patience {
			p.Fatalf("of %d rules %d are in order: %+v, %v", rules, good, answer, err)
		}
	}
}
