package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"decant/service"
)

// Version is that of the API: it changes when something is taken away.
const Version = "1.0.0"

// mostLooks is how many requests read journals at a time: each of them may hold the
// state of every region of a migration.
const mostLooks = 8

// routes is the mux with everything on it, and the document that describes it.
func (s *Server) routes() (http.Handler, error) {
	configureHuma()
	mux := http.NewServeMux()
	config := huma.DefaultConfig("decant", Version)
	config.Info.Description = apiDescription
	config.DocsPath, config.SchemasPath, config.OpenAPIPath = "", "", ""
	config.CreateHooks = nil // no $schema in answers
	config.RejectUnknownQueryParameters = true
	format := huma.Format{Marshal: marshal, Unmarshal: decodeStrict}
	config.Formats = map[string]huma.Format{"application/json": format, "json": format}
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "on the network; a Unix socket tells who its peer is"},
	}
	config.Security = []map[string][]string{{"token": {}}}
	describeQuantities(config.Components.Schemas)
	a := humago.New(mux, config)
	s.register(a)
	document, err := a.OpenAPI().YAML()
	if err != nil {
		return nil, fmt.Errorf("describe the API: %w", err)
	}
	s.openapi = document
	mux.HandleFunc("GET /openapi.yaml", s.serveOpenAPI)
	mux.HandleFunc("GET /v1/openapi.yaml", s.serveOpenAPI)
	mux.Handle("GET /metrics", s.metrics.handler())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.serveRest(mux, w, r) })
	return onlyPlainPaths(mux), nil
}

// marshal writes JSON that is also safe inside HTML.
func marshal(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

func (s *Server) serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/openapi+yaml")
	_, _ = io.Copy(w, bytes.NewReader(s.openapi)) // the client may have gone
}

// onlyPlainPaths refuses paths that the mux would send the client away from.
func onlyPlainPaths(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/") || path.Clean(r.URL.Path) != r.URL.Path {
			newProblem(http.StatusBadRequest, service.Usage, "not a plain path", "leave out . and .. and double slashes").write(w)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// serveRest is everything that has no route: the page, or a problem.
func (s *Server) serveRest(mux *http.ServeMux, w http.ResponseWriter, r *http.Request) {
	if allowed := otherMethods(mux, r); len(allowed) > 0 {
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		newProblem(http.StatusMethodNotAllowed, service.Usage, fmt.Sprintf("%s takes no %s", clip(r.URL.Path), clip(r.Method)), "").write(w)
		return
	}
	if s.Page != nil && !isAPI(r.URL.Path) {
		s.Page.ServeHTTP(w, r)
		return
	}
	newProblem(http.StatusNotFound, service.Usage, fmt.Sprintf("the API has no %s", clip(r.URL.Path)), "see /openapi.yaml").write(w)
}

// otherMethods are those with which the path has a route of its own.
func otherMethods(mux *http.ServeMux, r *http.Request) []string {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPatch} {
		probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		if _, pattern := mux.Handler(probe); pattern != "" && pattern != "/" {
			allowed = append(allowed, method)
		}
	}
	return allowed
}

const apiDescription = `The migrations that hydrated runs. Over its Unix socket for root and the members of its group,
over TCP with a bearer token. Requests that change something have the content type application/json, also without a body.
Every problem is an application/problem+json with a hint.`

// register puts the operations on the API.
func (s *Server) register(a huma.API) {
	looks := make(chan struct{}, mostLooks)
	operation := func(method, path, id, summary string) huma.Operation {
		return huma.Operation{Method: method, Path: path, OperationID: id, Summary: summary, MaxBodyBytes: mostBodyBytes, BodyReadTimeout: bodyTimeout}
	}
	s.registerLooks(a, looks, operation)
	s.registerChanges(a, looks, operation)
	s.registerEvents(a, operation)
}

// take waits for one of a number of slots, and gives it back with release.
func take(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, problemOf(&service.Error{Outcome: service.Stopped, Problem: "the request ended before its turn came", Err: ctx.Err()})
	}
}

// schemaOf is the schema of a type, kept among the components.
func schemaOf[T any](a huma.API) *huma.Schema {
	return a.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[T](), true, "")
}
