package api

import (
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"decant/service"
)

// recorder notes how a request was answered. Unwrap gives http.ResponseController
// the connection below it.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= 200 {
		r.status = status
	}
	if status == http.StatusRequestTimeout {
		r.Header().Set("Connection", "close") // what is left of the body would be the next request
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(data []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(data)
	r.bytes += int64(n)
	return n, err
}

// observe logs and counts every request. What a client sent in a body, in a query or
// in headers is not logged: it may hold a secret. A panic ends the request and not
// the service, whose migrations have done nothing wrong.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		rec := &recorder{ResponseWriter: w}
		defer func() {
			if failure := recover(); failure != nil && failure != http.ErrAbortHandler { //nolint:errorlint // it is that very value
				s.log.Error("panic in a request", "method", clip(r.Method), "path", clip(r.URL.Path), "panic", failure, "stack", string(debug.Stack()))
				if rec.status == 0 {
					newProblem(http.StatusInternalServerError, service.Failed, "the service has a bug: this request panicked", "the log of hydrated has more").write(rec)
				}
			}
			s.note(r, rec, time.Since(begin))
		}()
		next.ServeHTTP(rec, r)
	})
}

func (s *Server) note(r *http.Request, rec *recorder, took time.Duration) {
	route := r.Pattern // the mux has noted it in the request
	if route == "" {
		route = "none"
	}
	s.metrics.request(route, r.Method, rec.status, took)
	level := slog.LevelDebug
	switch {
	case rec.status >= 400:
		level = slog.LevelWarn
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		level = slog.LevelInfo
	}
	s.log.Log(r.Context(), level, "request", "method", clip(r.Method), "path", clip(r.URL.Path), "status", rec.status,
		"bytes", rec.bytes, "seconds", took.Seconds(), "from", callerOf(r).stamp)
}
