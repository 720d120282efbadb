package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"decant/service"
)

// read is what a command line and a file of the configuration come to.
func read(t *testing.T, file string, args ...string) (config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hydrated.conf")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return again(append([]string{"--config", path}, args...))
}

func TestConfigurationOfFileAndCommandLine(t *testing.T) {
	c, err := read(t, "# a comment\n\n running = 7\nrunning-per-disk=2\nroot = /a\nroot = /b c\nlog-level = debug\n", "--running=9", "--waiting", "3")
	if err != nil {
		t.Fatal(err)
	}
	if c.running != 9 || c.runningPerDisk != 2 || c.waiting != 3 || strings.Join(c.roots, ",") != "/a,/b c" || c.logLevel.String() != "DEBUG" {
		t.Errorf("%+v", c)
	}
	if c.socket != defaults().socket || c.historyEvents != defaults().historyEvents {
		t.Errorf("%+v", c)
	}
}

func TestRootsOfTheCommandLineTakeThePlaceOfTheFile(t *testing.T) {
	c, err := read(t, "root = /a\n", "--root=/x", "--root=/y")
	if err != nil || strings.Join(c.roots, ",") != "/x,/y" {
		t.Errorf("%v %v", c.roots, err)
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	for file, want := range map[string]string{
		"walking = 4":                   `line 1: there is no key "walking"`,
		"\n\nrunning":                   "line 3: is not of the form",
		"= 4":                           "is not of the form",
		"running = four":                "invalid argument",
		"running = 4\nrunning = 5":      "line 2: running is set in line 1 already",
		"running = 0":                   "not from 1 to",
		"log-level = loud":              "debug, info, warn and error",
		"config = /x":                   "there is no key",
		"help = true":                   "there is no key",
		"socket = /a\x00b":              "control characters",
		"socket = \xff":                 "no UTF-8",
		strings.Repeat("x", 10_000):     "token too long",
		strings.Repeat("# x\n", 300000): "more than",
		"listen = :1":                   "listen needs token-file",
		"token-file = /x":               "need listen",
		"state-dir = here":              "state-dir is not an absolute path",
		"listen = :1\ntoken-file = ./x": "token-file is not an absolute path",
		"listen = :1\ntoken-file = /x\ntls-key = /k": "need one another",
	} {
		if _, err := read(t, file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", file, err, want)
		} else if code := service.OutcomeOf(err); code != service.Refused && code != service.Usage {
			t.Errorf("%.40q: exit code %d", file, code)
		}
	}
}

func TestOnlyTheDefaultFileMayBeMissing(t *testing.T) {
	if _, err := again([]string{"--config", filepath.Join(t.TempDir(), "missing")}); service.OutcomeOf(err) != service.Refused {
		t.Errorf("%v", err)
	}
}

// The file that comes with the package says what the defaults are.
func TestTheCommentedFileShowsTheDefaults(t *testing.T) {
	text, err := os.ReadFile("../../packaging/hydrated.conf")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := read(t, string(text)); err != nil || c.running != defaults().running {
		t.Errorf("%+v %v", c, err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		key, _, found := strings.Cut(line, " = ")
		if key, isSetting := strings.CutPrefix(key, "#"); found && isSetting && !strings.HasPrefix(key, " ") {
			lines = append(lines, strings.TrimPrefix(line, "#"))
		}
	}
	settings, err := parseConfig(strings.NewReader(strings.Join(lines, "")))
	if err != nil {
		t.Fatal(err)
	}
	flags := command(nil).Flags()
	shown := map[string]bool{}
	for _, s := range settings {
		flag := flags.Lookup(s.key)
		if flag == nil {
			t.Errorf("there is no flag %s", s.key)
			continue
		}
		shown[s.key] = true
		switch s.key {
		case "root", "host", "listen", "token-file", "tls-certificate", "tls-key", "state-dir":
			// examples, or a default that depends on the user
		default:
			if flag.DefValue != s.value {
				t.Errorf("%s is %s by default, the file says %s", s.key, flag.DefValue, s.value)
			}
		}
	}
	for _, name := range []string{
		"running", "running-per-disk", "waiting", "root", "state-dir", "socket", "group", "listen", "token-file",
		"tls-certificate", "tls-key", "host", "history-events", "log-level",
	} {
		if !shown[name] {
			t.Errorf("the file does not show %s", name)
		}
	}
}

func TestCommandLinesThatMakeNoSense(t *testing.T) {
	for _, args := range [][]string{{"--nonsense"}, {"argument"}, {"--running=x"}} {
		if code := run(args); code != int(service.Usage) {
			t.Errorf("%v: exit code %d", args, code)
		}
	}
	if code := run([]string{"--check", "--running=5"}); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, seed := range []string{"running = 4\n", "# x\n\n=\n", "a==b", "root = /a\nroot=/b", "\x00", "x = \xff", "\r\nrunning = 1\r\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		settings, err := parseConfig(strings.NewReader(text))
		if err != nil {
			return
		}
		// What was read is read again from what it says.
		var b strings.Builder
		for _, s := range settings {
			if strings.ContainsAny(s.key+s.value, "\n\x00") || s.key == "" || s.key != strings.TrimSpace(s.key) || s.value != strings.TrimSpace(s.value) {
				t.Fatalf("%+v", s)
			}
			b.WriteString(s.key + " = " + s.value + "\n")
		}
		again, err := parseConfig(strings.NewReader(b.String()))
		if err != nil || len(again) != len(settings) {
			t.Fatalf("%v: %+v and then %+v", err, settings, again)
		}
		for i := range again {
			if again[i].key != settings[i].key || again[i].value != settings[i].value {
				t.Fatalf("%+v and then %+v", settings[i], again[i])
			}
		}
		flags := command(nil).Flags()
		_ = applyConfig(flags, settings) // it must not panic, whatever it says
	})
}
