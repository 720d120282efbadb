package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
)

//go:embed static
var files embed.FS

// policy lets the page load its own files and talk to its own server, and nothing
// else. Trusted Types make a string that is to become HTML an error.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// contentTypes are fixed here: those of the system's MIME tables differ from one
// machine to the next, and a module with a wrong one does not run.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".mjs":  "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
	"":      "text/plain; charset=utf-8", // licences
}

// asset is one file as it is sent.
type asset struct {
	contentType string
	etag        string // of the content; the compressed form has one of its own
	plain       []byte
	zipped      []byte // nil where that would not be smaller
}

// Handler serves the page: "/" and the files that it needs. Everything else is not
// found, also what could be routes of the page: it keeps those behind "#". The handler
// holds no state and may be used by any number of goroutines.
func Handler() http.Handler {
	assets, err := load()
	if err != nil {
		panic("web: embedded files: " + err.Error()) // they are part of the program
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		name := r.URL.Path
		if name == "/" {
			name = "/index.html"
		}
		a, found := assets[name]
		switch {
		case !found:
			http.NotFound(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		default:
			a.send(w, r)
		}
	})
}

func secure(h http.Header) {
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// send answers with the content, or with 304 where the browser has it. A browser asks
// each time, so that a new release of the service never meets half of an old page.
func (a asset) send(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	h.Set("Cache-Control", "no-cache")
	h.Set("Vary", "Accept-Encoding")
	content, etag := a.plain, a.etag
	if a.zipped != nil && acceptsGzip(r.Header) {
		content, etag = a.zipped, a.etag+"-gzip"
		h.Set("Content-Encoding", "gzip")
	}
	etag = `"` + etag + `"`
	h.Set("ETag", etag)
	if hasTag(r.Header.Get("If-None-Match"), etag) {
		h.Del("Content-Encoding")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(content)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(content) // a browser that went away needs nothing
	}
}

// acceptsGzip is whether gzip is named and not refused with a quality of zero.
func acceptsGzip(h http.Header) bool {
	for _, line := range h.Values("Accept-Encoding") {
		for coding := range strings.SplitSeq(line, ",") {
			name, parameters, _ := strings.Cut(coding, ";")
			if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
				continue
			}
			quality, given := strings.CutPrefix(strings.ReplaceAll(parameters, " ", ""), "q=")
			q, err := strconv.ParseFloat(quality, 64)
			return !given || (err == nil && q > 0)
		}
	}
	return false
}

// hasTag is whether a list of entity tags has this one; weak ones count.
func hasTag(list, etag string) bool {
	for tag := range strings.SplitSeq(list, ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag == etag || tag == "*" {
			return true
		}
	}
	return false
}

func load() (map[string]asset, error) {
	const root = "static"
	assets := map[string]asset{}
	err := fs.WalkDir(files, root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		a, err := newAsset(name, content)
		assets[strings.TrimPrefix(name, root)] = a
		return err
	})
	return assets, err
}

func newAsset(name string, content []byte) (asset, error) {
	sum := sha256.Sum256(content)
	a := asset{contentType: contentTypes[path.Ext(name)], etag: hex.EncodeToString(sum[:12]), plain: content}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return a, err
	}
	if _, err := z.Write(content); err != nil {
		return a, err
	}
	if err := z.Close(); err != nil {
		return a, err
	}
	if b.Len() < len(content) {
		a.zipped = b.Bytes()
	}
	return a, nil
}
