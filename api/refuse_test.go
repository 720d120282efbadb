package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"decant/api/client"
	"decant/service"
)

// start is a body of POST /v1/migrations with something in place of the options.
func start(options string) string {
	return `{"source":"/a","destination":"p/a","options":` + options + `}`
}

// malformed are bodies of POST /v1/migrations, and how they are answered.
var malformed = map[string]struct {
	body   string
	status int
}{
	"nothing":                 {"", 400},
	"not JSON":                {"source=/a", 400},
	"half":                    {`{"source":"/a"`, 400},
	"two values":              {start("{}") + start("{}"), 400},
	"behind it":               {start("{}") + "x", 400},
	"an array":                {"[]", 422},
	"null":                    {"null", 422},
	"no source":               {`{"destination":"p/a"}`, 422},
	"empty source":            {`{"source":"","destination":"p/a"}`, 422},
	"source is no text":       {`{"source":1,"destination":"p/a"}`, 422},
	"a long source":           {`{"source":"/` + strings.Repeat("a", 5000) + `","destination":"p/a"}`, 422},
	"unknown field":           {`{"source":"/a","destination":"p/a","sudo":true}`, 422},
	"other case":              {`{"SOURCE":"/a","destination":"p/a"}`, 422},
	"unknown option":          {start(`{"alive":"x"}`), 422},
	"twice":                   {`{"source":"/a","source":"/b","destination":"p/a"}`, 400},
	"twice, escaped":          {`{"source":"/a","\u0073ource":"/b","destination":"p/a"}`, 400},
	"twice, in other case":    {`{"source":"/a","SOURCE":"/b","destination":"p/a"}`, 400},
	"twice, folded":           {`{"source":"/a","\u017fource":"/b","destination":"p/a"}`, 400},
	"many names":              {start("{" + strings.TrimSuffix(strings.Repeat(`"x":1,`, 100), ",") + "}"), 400},
	"option twice":            {start(`{"verify":true,"verify":false}`), 400},
	"negative size":           {start(`{"region_size":-4096}`), 422},
	"negative text":           {start(`{"region_size":"-4KiB"}`), 422},
	"1e308":                   {start(`{"commit_bytes":1e308}`), 422},
	"1e999":                   {start(`{"commit_bytes":1e999}`), 400},
	"2^63":                    {start(`{"commit_bytes":9223372036854775808}`), 422},
	"a fraction":              {start(`{"bwlimit":1.5}`), 422},
	"NaN":                     {start(`{"bwlimit":NaN}`), 400},
	"NaN as text":             {start(`{"bwlimit":"NaN"}`), 422},
	"unknown unit":            {start(`{"bwlimit":"5MB/s"}`), 422},
	"threshold 0":             {start(`{"threshold":0}`), 422},
	"threshold negative":      {start(`{"threshold":-1}`), 422},
	"threshold huge":          {start(`{"threshold":18446744073709551615}`), 422},
	"batch as text":           {start(`{"batch":"4"}`), 422},
	"period without unit":     {start(`{"commit_period":5}`), 422},
	"period of nonsense":      {start(`{"commit_period":"soon"}`), 422},
	"region size odd":         {start(`{"region_size":1000}`), 400},
	"remove without discard":  {start(`{"remove_src":true}`), 400},
	"priority huge":           {`{"source":"/a","destination":"p/a","priority":99999}`, 422},
	"deep":                    {start(strings.Repeat(`[`, 100000) + strings.Repeat(`]`, 100000)), 400},
	"NUL in a name":           {`{"source":"/a\u0000","destination":"p/a"}`, 400},
	"newline in a name":       {`{"source":"/a\nb","destination":"p/a"}`, 400},
	"escape in a name":        {`{"source":"/a\u001b[31m","destination":"p/a"}`, 400},
	"C1 control in a name":    {`{"source":"/a\u009b31m","destination":"p/a"}`, 400},
	"raw control in a name":   {"{\"source\":\"/a\x07\",\"destination\":\"p/a\"}", 400},
	"half a surrogate":        {`{"source":"/a\ud800","destination":"p/a"}`, 400},
	"not UTF-8":               {"{\"source\":\"/a\xff\",\"destination\":\"p/a\"}", 400},
	"control in destination":  {`{"source":"/a","destination":"p/\u007f"}`, 400},
	"control in thin_pool":    {start(`{"thin_pool":"a\u0001"}`), 400},
	"not a name of a pool":    {start(`{"thin_pool":"../x"}`), 400},
	"as large as is too much": {`{"source":"` + strings.Repeat("a", 1<<20) + `"}`, 413},
	"much larger":             {`{"source":"` + strings.Repeat("a", 5<<20) + `"}`, 413},
}

// fault 91: JSON bombs, names that come twice, 1e308, negative sizes, unknown fields.
func TestMalformedRequestsChangeNothing(t *testing.T) {
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	for name, test := range malformed {
		t.Run(name, func(t *testing.T) {
			r := v.do("POST", "/v1/migrations", test.body)
			p := r.problem(t)
			if p.Status != test.status || p.ExitCode != int(service.Usage) || p.Detail == "" {
				t.Errorf("status %d, want %d: %s", p.Status, test.status, r.body)
			}
			if len(r.body) > 4096 {
				t.Errorf("the answer has %d bytes", len(r.body))
			}
		})
	}
	if calls := f.noted(); len(calls) > 0 {
		t.Errorf("malformed requests had the service do %.200q", calls)
	}
	if n := strings.Count(v.log.String(), "status=4"); n < 40 {
		t.Errorf("only %d of the refusals were logged", n)
	}
	if len(v.log.String()) > 100<<10 {
		t.Errorf("the log has grown to %d bytes", len(v.log.String()))
	}
}

// fault 91: the same for the parameters of other routes.
func TestMalformedParametersChangeNothing(t *testing.T) {
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"PATCH", "/v1/migrations/aa11", `{}`, 400},
		{"PATCH", "/v1/migrations/aa11", ``, 400},
		{"PATCH", "/v1/migrations/aa11", `{"bwlimit":-1}`, 422},
		{"PATCH", "/v1/migrations/aa11", `{"bwlimit":null}`, 400},
		{"PATCH", "/v1/migrations/aa11", `{"bwlimit":"1KiB/s","bwlimit":0}`, 400},
		{"PATCH", "/v1/migrations/aa11", `{"discard_src":true}`, 422},
		{"POST", "/v1/migrations/aa11/pause", `{"force":true}`, 422},
		{"POST", "/v1/migrations/aa11/pause", `[]`, 422},
		{"POST", "/v1/migrations/aa11/cancel", `{"reverse":"yes"}`, 422},
		{"GET", "/v1/migrations/aa11/map?cells=0", "", 422},
		{"GET", "/v1/migrations/aa11/map?cells=-1", "", 422},
		{"GET", "/v1/migrations/aa11/map?cells=65537", "", 422},
		{"GET", "/v1/migrations/aa11/map?cells=1e3", "", 422},
		{"GET", "/v1/migrations/aa11/map?cells=NaN", "", 422},
		{"GET", "/v1/migrations/aa11/map?sells=1", "", 422},
		{"GET", "/v1/migrations/aa11/explain", "", 422},
		{"GET", "/v1/migrations/aa11/explain?offset=-1", "", 422},
		{"GET", "/v1/migrations/aa11/explain?offset=9223372036854775808", "", 422},
		{"GET", "/v1/migrations?limit=100000", "", 422},
		{"GET", "/v1/events?after=-1", "", 422},
		{"GET", "/v1/events?after=99999999999999999999", "", 400},
		{"GET", "/v1/events?after=yesterday", "", 422},
	} {
		if r := v.do(test.method, test.path, test.body); r.problem(t).Status != test.status {
			t.Errorf("%s %s %s: status %d, want %d: %s", test.method, test.path, test.body, r.status, test.status, r.body)
		}
	}
	if calls := f.noted(); len(calls) > 0 {
		t.Errorf("malformed requests had the service do %q", calls)
	}
}

// fault 90: paths that try to leave the API.
func TestPathsThatEscape(t *testing.T) {
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	for _, target := range []string{
		"/v1/../etc/passwd", "/v1/migrations/../../etc/passwd", "//v1/migrations", "/v1//migrations", "/v1/./migrations",
		"/v1/migrations/%2e%2e/pause", "/v1/migrations/..%2f..%2fetc%2fpasswd/pause", "/v1/migrations/a%00/pause", "/v1/migrations/A/pause",
		"/v1/migrations/%2Fetc%2Fpasswd/pause", "/v1/migrations/" + strings.Repeat("a", 5000) + "/pause", "/v1/migrations/aa11%0a/pause",
	} {
		for _, method := range []string{"GET", "POST"} {
			status := rawRequest(t, v.socket, method+" "+target+" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			if status < 400 || status >= 500 {
				t.Errorf("%s %.80s: status %d", method, target, status)
			}
		}
	}
	if calls := f.noted(); len(calls) > 0 {
		t.Errorf("escaping paths had the service do %q", calls)
	}
}

// rawRequest sends bytes as they are and returns the status of the answer.
func rawRequest(t *testing.T, socket, request string) int {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.80q: %v", request, err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// fault 91: a body that does not come, and headers that do not end, hold nothing.
func TestSlowRequestsAreLeft(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the time limits")
	}
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	for name, request := range map[string]string{
		"body":           "POST /v1/migrations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
		"unwanted body":  "POST /v1/migrations/aa11/nonsense HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
		"headers":        "POST /v1/migrations HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
		"no first bytes": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", v.socket)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			begin := time.Now()
			_ = conn.SetDeadline(begin.Add(3 * headerTimeout))
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Errorf("after %s: %v", time.Since(begin), err)
			}
		})
	}
	t.Cleanup(func() {
		if calls := f.noted(); len(calls) > 0 {
			t.Errorf("slow requests had the service do %q", calls)
		}
	})
}

// fault 89: names hold markup, control characters and escapes of terminals.
func TestNamesCannotBecomeMarkup(t *testing.T) {
	f := newFake()
	evil := "/images/<script>alert(1)</script>&\x1b[31m\n\x00'\"\u202e\xff"
	f.statuses[0].Source = evil
	f.statuses[0].Reason = evil
	v := serveUnix(t, fakeConfig(f))
	r := v.do("GET", "/v1/migrations", "")
	if strings.ContainsAny(r.body, "<>&\x1b\x00") || strings.Count(r.body, "\n") != 1 {
		t.Errorf("raw in the answer: %q", r.body)
	}
	if r.header.Get("Content-Type") != "application/json" {
		t.Errorf("content type %q", r.header.Get("Content-Type"))
	}
	list := decode[client.MigrationList](t, r)
	if want := strings.ReplaceAll(evil, "\xff", "\ufffd"); list.Migrations[0].Source != want {
		t.Errorf("the name came as %q", list.Migrations[0].Source)
	}
	// In an event it stays within its line, and in a problem as well.
	f.say(service.Event{Event: service.Warning, ID: "aa11", Message: evil})
	stream := v.openStream(t, "/v1/events?after=0", nil)
	if e := stream.next(t); e.name != "warning" || strings.ContainsAny(e.data, "<>\x1b\n\r") {
		t.Errorf("event %+v", e)
	}
	f.err = &service.Error{Outcome: service.Refused, Object: evil, Problem: "x"}
	if r := v.do("POST", "/v1/migrations/aa11/pause", ""); strings.ContainsAny(strings.TrimSpace(r.body), "<>\x1b\n") {
		t.Errorf("raw in the problem: %q", r.body)
	}
	// What a client puts into a path is quoted in the log.
	rawRequest(t, v.socket, "GET /v1/%1b%5b31m%0afake=line HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	if log := v.log.String(); strings.Contains(log, "\x1b") || strings.Contains(log, "\nfake") {
		t.Errorf("raw in the log: %q", log)
	}
}

// fault 97: a log that takes no more holds up no request.
func TestFullLogHoldsUpNothing(t *testing.T) {
	f := newFake()
	c := fakeConfig(f)
	c.Log = slogTo(brokenWriter{})
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	v := serveOn(t, s)
	if r := v.do("POST", "/v1/migrations/aa11/pause", ""); r.status != 200 {
		t.Errorf("status %d", r.status)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, fmt.Errorf("no space left on device") }

func TestPanicEndsTheRequestOnly(t *testing.T) {
	f := newFake()
	c := fakeConfig(f)
	c.Page = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a bug") })
	v := serveUnix(t, c)
	if r := v.do("GET", "/", ""); r.problem(t).Status != 500 {
		t.Errorf("status %d", r.status)
	}
	if r := v.do("GET", "/healthz", ""); r.status != 200 {
		t.Errorf("the service is gone: %d", r.status)
	}
	if !strings.Contains(v.log.String(), "a bug") {
		t.Error("the log does not tell of the panic")
	}
}

func TestDecoderIsStrict(t *testing.T) {
	for body, want := range map[string]string{
		"{\"source\":\"\xff\"}":       "not UTF-8",
		`{"source":"a","source":"a"}`: "twice",
		`{"source":"a","Source":"a"}`: "twice",
		`{"source":"a"} {}`:           "behind its JSON value",
		`{"source":"a"`:               "ends within",
		``:                            "ends within",
		`{"sauce":"a"}`:               "unknown field",
		`{"options":{"a":` + strings.Repeat("[", mostDepth) + strings.Repeat("]", mostDepth) + `}}`: "nested more than",
	} {
		var n client.NewMigration
		if err := decodeStrict([]byte(body), &n); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", body, err, want)
		}
	}
	var value any
	if err := decodeStrict([]byte(strings.Repeat("[", mostDepth)+strings.Repeat("]", mostDepth)), &value); err != nil {
		t.Errorf("as deep as may be: %v", err)
	}
}

// What the decoder takes is what encoding/json takes, and is the same after another
// round; it never takes an object in which a name comes twice.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		start("{}"), start(`{"bwlimit":"50MiB/s","commit_bytes":1e3}`), `{"source":"/a","source":"/b","destination":"c"}`, `[]`, `{"options":null}`,
		"{\"source\":\"\xff\"}", `{"source":"\ud800","destination":"x"}`, `{"options":{"threshold":18446744073709551615}}`, `1e999`, `{"a":{"a":{"a":{}}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var n client.NewMigration
		if decodeStrict(data, &n) != nil {
			return
		}
		var loose client.NewMigration
		if err := json.Unmarshal(data, &loose); err != nil {
			t.Fatalf("taken, and encoding/json says %v", err)
		}
		if o := n.Options; o.BWLimit != nil && *o.BWLimit < 0 || o.CommitBytes != nil && *o.CommitBytes < 0 || o.RegionSize != nil && *o.RegionSize < 0 {
			t.Fatalf("a negative size in %q", data)
		}
		r, err := requestOf(n)
		if err != nil {
			return
		}
		if err := r.Options.Check(); err != nil {
			t.Fatalf("%q gives options that make no sense: %v", data, err)
		}
		text, err := json.Marshal(client.NewMigrationOf(r))
		if err != nil {
			t.Fatal(err)
		}
		var again client.NewMigration
		if err := decodeStrict(text, &again); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if r2, err := requestOf(again); err != nil || r2 != r {
			t.Fatalf("%q gives %+v, and then %+v, %v", data, r, r2, err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, data); err != nil {
			t.Fatal(err)
		}
	})
}
