package web

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func get(path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, http.NoBody)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w
}

func TestEveryFileIsServedWithItsType(t *testing.T) {
	want := map[string]string{
		"/": "text/html; charset=utf-8", "/index.html": "text/html; charset=utf-8", "/base.css": "text/css; charset=utf-8",
		"/main.js": "text/javascript; charset=utf-8", "/vendor/preact/preact.mjs": "text/javascript; charset=utf-8",
		"/icon.svg": "image/svg+xml", "/vendor/uplot/LICENSE": "text/plain; charset=utf-8",
	}
	for name, contentType := range want {
		r := get(name)
		if r.Code != http.StatusOK || r.Header().Get("Content-Type") != contentType {
			t.Errorf("%s: %d, %q", name, r.Code, r.Header().Get("Content-Type"))
		}
		if len(r.Body.Bytes()) == 0 {
			t.Errorf("%s is empty", name)
		}
		if r.Header().Get("Content-Security-Policy") != policy || r.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s lacks headers: %v", name, r.Header())
		}
	}
}

func TestNoFileHasAnUnknownType(t *testing.T) {
	err := fs.WalkDir(files, "static", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && contentTypes[path.Ext(name)] == "" {
			t.Errorf("%s has no content type", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOtherPathsAndMethodsAreRefused(t *testing.T) {
	for _, name := range []string{"/nothing.js", "/static/main.js", "/vendor/", "/vendor", "/../web.go", "//main.js", "/v1/migrations"} {
		if r := get("http://host" + name); r.Code != http.StatusNotFound {
			t.Errorf("%s: %d", name, r.Code)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		w := httptest.NewRecorder()
		Handler().ServeHTTP(w, httptest.NewRequest(method, "/", http.NoBody))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s /: %d, Allow %q", method, w.Code, w.Header().Get("Allow"))
		}
	}
}

func TestHeadHasNoBody(t *testing.T) {
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, httptest.NewRequest(http.MethodHead, "/main.js", http.NoBody))
	if w.Code != http.StatusOK || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "0" {
		t.Errorf("%d, %d bytes, %v", w.Code, w.Body.Len(), w.Header())
	}
}

func TestCompressedContentIsTheSame(t *testing.T) {
	const name = "/vendor/uplot/uPlot.mjs"
	plain := get(name).Body.Bytes()
	r := get(name, "Accept-Encoding", "br, gzip;q=0.8")
	if r.Header().Get("Content-Encoding") != "gzip" || r.Header().Get("Vary") != "Accept-Encoding" {
		t.Fatalf("headers %v", r.Header())
	}
	zipped := r.Body.Bytes()
	z, err := gzip.NewReader(bytes.NewReader(zipped))
	if err != nil {
		t.Fatal(err)
	}
	unzipped, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(unzipped, plain) || len(zipped) >= len(plain) {
		t.Errorf("%d bytes, compressed %d, are %d again: %v", len(plain), len(zipped), len(unzipped), err)
	}
	for _, refused := range []string{"", "br", "gzip;q=0", "gzip; q=0.0", "gzip;q=x"} {
		if r := get(name, "Accept-Encoding", refused); r.Header().Get("Content-Encoding") != "" {
			t.Errorf("%q got %s", refused, r.Header().Get("Content-Encoding"))
		}
	}
}

func TestBrowserKeepsWhatHasNotChanged(t *testing.T) {
	for _, encoding := range []string{"", "gzip"} {
		r := get("/main.js", "Accept-Encoding", encoding)
		etag := r.Header().Get("ETag")
		if etag == "" || r.Header().Get("Cache-Control") != "no-cache" {
			t.Fatalf("%v", r.Header())
		}
		for _, tags := range []string{etag, "W/" + etag, `"x", ` + etag, "*"} {
			again := get("/main.js", "Accept-Encoding", encoding, "If-None-Match", tags)
			if again.Code != http.StatusNotModified || len(again.Body.Bytes()) != 0 {
				t.Errorf("If-None-Match: %s: %d", tags, again.Code)
			}
		}
		if other := get("/main.js", "Accept-Encoding", encoding, "If-None-Match", `"x"`); other.Code != http.StatusOK {
			t.Errorf("another tag: %d", other.Code)
		}
	}
	if a, b := get("/main.js"), get("/main.js", "Accept-Encoding", "gzip"); a.Header().Get("ETag") == b.Header().Get("ETag") {
		t.Error("both encodings have one tag")
	}
}

// ours calls f for each file of the page that is not somebody else's.
func ours(t *testing.T, f func(name, text string)) {
	t.Helper()
	err := fs.WalkDir(files, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(name, "/vendor/") {
			return err
		}
		content, err := files.ReadFile(name)
		f(strings.TrimPrefix(name, "static/"), string(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNothingComesFromOutside(t *testing.T) {
	address := regexp.MustCompile(`(?i)(https?:)?//[a-z0-9.-]+\.[a-z]{2,}`)
	ours(t, func(name, text string) {
		text = strings.ReplaceAll(text, "http://www.w3.org/2000/svg", "") // names a format
		if found := address.FindString(text); found != "" {
			t.Errorf("%s names %s", name, found)
		}
	})
}

func TestNoMarkupIsMadeOfStrings(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySet|\beval\b|new Function|setAttribute\("style|style="|<script>|\bon\w+="`)
	ours(t, func(name, text string) {
		if found := forbidden.FindString(text); found != "" {
			t.Errorf("%s has %s", name, found)
		}
	})
}

func TestModulesStayShort(t *testing.T) {
	const maxLines = 300
	ours(t, func(name, text string) {
		if n := strings.Count(text, "\n"); n > maxLines {
			t.Errorf("%s has %d lines", name, n)
		}
	})
}

func TestEveryModuleIsUsedAndThere(t *testing.T) {
	imported := regexp.MustCompile(`(?m)^(?:import|export) .*from "\./([^"]+)"`)
	used := map[string]bool{"main.js": true, "index.html": true, "icon.svg": true, "base.css": true, "page.css": true}
	ours(t, func(name, text string) {
		for _, m := range imported.FindAllStringSubmatch(text, -1) {
			used[m[1]] = true
			if _, err := fs.Stat(files, path.Join("static", m[1])); err != nil {
				t.Errorf("%s imports %s: %v", name, m[1], err)
			}
		}
	})
	ours(t, func(name, _ string) {
		if !used[name] {
			t.Errorf("nothing imports %s", name)
		}
	})
}

func TestLicencesAreThere(t *testing.T) {
	libraries, err := os.ReadDir(filepath.Join("static", "vendor"))
	if err != nil || len(libraries) == 0 {
		t.Fatalf("%d libraries: %v", len(libraries), err)
	}
	for _, l := range libraries {
		text, err := os.ReadFile(filepath.Join("static", "vendor", l.Name(), "LICENSE"))
		if err != nil || !regexp.MustCompile(`MIT License|Apache License`).Match(text) {
			t.Errorf("%s: %v", l.Name(), err)
		}
	}
}
