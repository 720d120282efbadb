package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"decant/api/client"
	"decant/service"
)

// problem is a client.Problem as huma sends it.
type problem struct{ client.Problem }

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *problem) ContentType(string) string { return client.ProblemType }

var outcomeNames = map[service.Outcome]string{
	service.Failed: "failed", service.Usage: "usage", service.Stopped: "stopped", service.Refused: "refused",
}

// newProblem is a problem of the API itself.
func newProblem(status int, outcome service.Outcome, detail, hint string) *problem {
	return &problem{client.Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Hint: hint,
		Outcome: outcomeNames[outcome], ExitCode: int(outcome),
	}}
}

// problemOf is the problem that an error of the service is, nil for none.
func problemOf(err error) error {
	if err == nil {
		return nil
	}
	var known *problem
	if errors.As(err, &known) {
		return known
	}
	outcome := service.OutcomeOf(err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		outcome = service.Stopped
	}
	p := newProblem(statusOf(err, outcome), outcome, err.Error(), service.HintOf(err))
	if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
		return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {"10"}})
	}
	return p
}

// statusOf chooses the status of HTTP.
func statusOf(err error, outcome service.Outcome) int {
	switch {
	case errors.Is(err, service.ErrUnknownMigration):
		return http.StatusNotFound
	case errors.Is(err, service.ErrTooMany):
		return http.StatusTooManyRequests
	}
	switch outcome {
	case service.Usage:
		return http.StatusBadRequest
	case service.Refused:
		return http.StatusConflict
	case service.Stopped:
		return http.StatusServiceUnavailable
	case service.Success, service.Failed:
	}
	return http.StatusInternalServerError
}

// write answers a request that never came to a handler of huma.
func (p *problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", client.ProblemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may have gone
}

// configureHuma makes huma word its own errors as problems, and tell names apart that
// differ in their case, as "source" and "SOURCE". It has settings for the whole process
// only.
var configureHuma = sync.OnceFunc(func() {
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		outcome := service.Failed
		if status >= 400 && status < 500 {
			outcome = service.Usage
		}
		p := newProblem(status, outcome, message, "")
		for _, err := range errs {
			if err != nil {
				p.Errors = append(p.Errors, fieldError(err))
			}
		}
		return p
	}
})

// fieldError takes over what is wrong, and not the value: that may be a megabyte.
func fieldError(err error) client.FieldErrors {
	var detail huma.ErrorDetailer
	if errors.As(err, &detail) {
		d := detail.ErrorDetail()
		return client.FieldErrors{Location: clip(d.Location), Message: clip(d.Message)}
	}
	return client.FieldErrors{Message: clip(err.Error())}
}

// clip keeps what a client sent from filling an answer or the log.
func clip(text string) string {
	const most = 200
	if len(text) <= most {
		return text
	}
	for end := most; ; end-- {
		if utf8.RuneStart(text[end]) {
			return fmt.Sprintf("%s... (%d bytes)", text[:end], len(text))
		}
	}
}
