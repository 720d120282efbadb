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

	"decant/service"
)

// problemType is the content type of RFC 9457.
const problemType = "application/problem+json"

// Problem is what every request that did not succeed is answered with, after
// RFC 9457. Hint and exit code are those of the command line.
type Problem struct { //nolint:errname // what RFC 9457 calls it
	Type     string        `json:"type,omitempty" doc:"about:blank: the status says what kind of problem it is"`
	Title    string        `json:"title" doc:"the text of the status"`
	Status   int           `json:"status"`
	Detail   string        `json:"detail" doc:"what failed, on which object, and what state things are in"`
	Hint     string        `json:"hint,omitempty" doc:"what to do"`
	Outcome  string        `json:"outcome" enum:"failed,usage,stopped,refused" doc:"failed: what is whole, and where, is in detail; usage: the request makes no sense; stopped: before the end, nothing is lost; refused: nothing was changed"`
	ExitCode int           `json:"exit_code" doc:"the exit code of migrate for it"`
	Errors   []FieldErrors `json:"errors,omitempty" doc:"what is wrong with which part of the request"`
	Plan     *service.Plan `json:"plan,omitempty" doc:"what preflight had found out, when it refused"`
}

// FieldErrors is what is wrong with one part of a request.
type FieldErrors struct {
	Location string `json:"location,omitempty" doc:"such as body.options.bwlimit"`
	Message  string `json:"message"`
}

// Error implements error and huma.StatusError.
func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return problemType }

var outcomeNames = map[service.Outcome]string{
	service.Failed: "failed", service.Usage: "usage", service.Stopped: "stopped", service.Refused: "refused",
}

// newProblem is a problem of the API itself.
func newProblem(status int, outcome service.Outcome, detail, hint string) *Problem {
	return &Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Hint: hint,
		Outcome: outcomeNames[outcome], ExitCode: int(outcome),
	}
}

// problemOf is the problem that an error of the service is, nil for none.
func problemOf(err error) error {
	if err == nil {
		return nil
	}
	var known *Problem
	if errors.As(err, &known) {
		return known
	}
	outcome := service.OutcomeOf(err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		outcome = service.Stopped
	}
	problem := newProblem(statusOf(err, outcome), outcome, err.Error(), service.HintOf(err))
	if problem.Status == http.StatusTooManyRequests || problem.Status == http.StatusServiceUnavailable {
		return huma.ErrorWithHeaders(problem, http.Header{"Retry-After": {"10"}})
	}
	return problem
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
func (p *Problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", problemType)
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
func fieldError(err error) FieldErrors {
	var detail huma.ErrorDetailer
	if errors.As(err, &detail) {
		d := detail.ErrorDetail()
		return FieldErrors{Location: clip(d.Location), Message: clip(d.Message)}
	}
	return FieldErrors{Message: clip(err.Error())}
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
