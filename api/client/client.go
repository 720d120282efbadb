// Package client talks over HTTP to a service, as package api serves it. Beside the
// client it has the documents that the two exchange, so that what one writes the other
// reads; their tags are for the schema that the server makes of them.
//
// Every start of migrate pays for what this package imports, also one that asks no
// service. So it has nothing that only a server needs.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"decant/service"
)

// ErrNoService is what a client's calls return, wrapped in a *service.Error, if nobody
// answers at its address.
var ErrNoService = errors.New("no service answers")

// mostAnswerBytes bounds what a client keeps of an answer. A list of 1,000 migrations
// has about one megabyte.
const mostAnswerBytes = 64 << 20

// Client talks to a service. Its methods may be called concurrently. Every error that
// they return has a *service.Error in its chain, with the outcome and the hint that the
// service gave, and a *Problem if the service has answered with one.
type Client struct {
	http  *http.Client
	base  *url.URL
	token string
	name  string // of the service, for errors
}

// New is a client of the service at address: the path of a Unix socket, or
// http://HOST:PORT or https://HOST:PORT, which needs the text of the token. It connects to nothing yet. What is no address, or
// lacks its token, is an error with the outcome service.Usage.
func New(address, token string) (*Client, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute}
	c := &Client{http: &http.Client{Transport: transport, CheckRedirect: noRedirect}, token: token, name: address}
	if !strings.Contains(address, "://") {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", address)
		}
		c.base = &url.URL{Scheme: "http", Host: "localhost"}
		return c, nil
	}
	base, err := url.Parse(address)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" || strings.Trim(base.Path, "/") != "" || base.RawQuery != "" {
		return nil, &service.Error{
			Outcome: service.Usage, Object: address, Problem: "not the address of a service",
			Hint: "give the path of its socket, or https://HOST:PORT",
		}
	}
	if token == "" {
		return nil, &service.Error{Outcome: service.Usage, Object: address, Problem: "a service on the network wants a token", Hint: "name the file that holds it with --token-file"}
	}
	c.base = &url.URL{Scheme: base.Scheme, Host: base.Host}
	return c, nil
}

// noRedirect keeps the token from being sent elsewhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// IsLocal says whether the service is one on this machine, behind a Unix socket.
func (c *Client) IsLocal() bool { return c.token == "" }

// Name is the address of the service.
func (c *Client) Name() string { return c.name }

// Close gives up the connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Info says which service this is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	return call[Info](ctx, c, http.MethodGet, "/v1/info", nil, nil)
}

// List is every migration, the newest first.
func (c *Client) List(ctx context.Context) ([]service.Status, error) {
	const page = 1000
	all := []service.Status{}
	for {
		list, err := call[MigrationList](ctx, c, http.MethodGet, fmt.Sprintf("/v1/migrations?limit=%d&skip=%d", page, len(all)), nil, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, list.Migrations...)
		if len(list.Migrations) < page {
			return all, nil
		}
	}
}

// Get is all about one migration, with a map of so many cells.
func (c *Client) Get(ctx context.Context, id string, cells int) (Migration, error) {
	return call[Migration](ctx, c, http.MethodGet, migrationURL(id, "")+"?cells="+strconv.Itoa(cells), nil, nil)
}

// Map is the states of its regions.
func (c *Client) Map(ctx context.Context, id string, cells int) (RegionMap, error) {
	return call[RegionMap](ctx, c, http.MethodGet, migrationURL(id, "map")+"?cells="+strconv.Itoa(cells), nil, nil)
}

// Explain tells where the bytes at an offset are.
func (c *Client) Explain(ctx context.Context, id string, offset int64) (service.Explanation, error) {
	return call[service.Explanation](ctx, c, http.MethodGet, migrationURL(id, "explain")+"?offset="+strconv.FormatInt(offset, 10), nil, nil)
}

// Pools is every pool that the service knows.
func (c *Client) Pools(ctx context.Context) ([]service.PoolStatus, error) {
	list, err := call[PoolList](ctx, c, http.MethodGet, "/v1/pools", nil, nil)
	return list.Pools, err
}

// Start hands a migration to the service. The same key again starts no other one.
func (c *Client) Start(ctx context.Context, n NewMigration, idempotencyKey string) (service.Status, error) {
	header := http.Header{}
	if idempotencyKey != "" {
		header.Set("Idempotency-Key", idempotencyKey)
	}
	return call[service.Status](ctx, c, http.MethodPost, "/v1/migrations", n, header)
}

// Plan is a dry run. Of what preflight refuses, the plan is as far as it came.
func (c *Client) Plan(ctx context.Context, n NewMigration) (service.Plan, error) {
	n.DryRun = true
	plan, err := call[service.Plan](ctx, c, http.MethodPost, "/v1/migrations", n, nil)
	var problem *Problem
	if errors.As(err, &problem) && problem.Plan != nil {
		return *problem.Plan, err
	}
	return plan, err
}

// Pause has a migration commit and stop until it is resumed.
func (c *Client) Pause(ctx context.Context, id string) (service.Status, error) {
	return c.steer(ctx, id, "pause", nil)
}

// Resume lets a migration go on.
func (c *Client) Resume(ctx context.Context, id string) (service.Status, error) {
	return c.steer(ctx, id, "resume", nil)
}

// Reverse has its bytes brought back to the source.
func (c *Client) Reverse(ctx context.Context, id string) (service.Status, error) {
	return c.steer(ctx, id, "reverse", nil)
}

// Verify has what was copied read back and compared.
func (c *Client) Verify(ctx context.Context, id string) (service.Status, error) {
	return c.steer(ctx, id, "verify", nil)
}

// Cancel gives a migration up.
func (c *Client) Cancel(ctx context.Context, id string, how Cancellation) (service.Status, error) {
	return c.steer(ctx, id, "cancel", how)
}

// Tune changes limits while a migration runs.
func (c *Client) Tune(ctx context.Context, id string, t Tuning) (service.Status, error) {
	return call[service.Status](ctx, c, http.MethodPatch, migrationURL(id, ""), t, nil)
}

func (c *Client) steer(ctx context.Context, id, verb string, body any) (service.Status, error) {
	return call[service.Status](ctx, c, http.MethodPost, migrationURL(id, verb), body, nil)
}

func migrationURL(id, rest string) string {
	return strings.TrimSuffix("/v1/migrations/"+url.PathEscape(id)+"/"+rest, "/")
}

// call makes one request and decodes its answer.
func call[T any](ctx context.Context, c *Client, method, path string, body any, header http.Header) (T, error) {
	var answer T
	response, err := c.send(ctx, method, path, body, header)
	if err != nil {
		return answer, err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	text, err := io.ReadAll(io.LimitReader(response.Body, mostAnswerBytes))
	if err != nil {
		return answer, c.lost(ctx, err)
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return answer, &service.Error{Outcome: service.Failed, Object: c.name, Problem: "its answer cannot be read", Hint: "is it a service of decant, and of this version?", Err: err}
	}
	return answer, nil
}

// send makes one request. A response that it returns is one of success, whose body the
// caller closes.
func (c *Client) send(ctx context.Context, method, path string, body any, header http.Header) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, &service.Error{Outcome: service.Failed, Problem: "the request has no JSON form", Err: err}
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, content)
	if err != nil {
		return nil, &service.Error{Outcome: service.Usage, Problem: "the request cannot be made", Err: err}
	}
	for name, values := range header {
		request.Header[name] = values
	}
	if method != http.MethodGet {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	if response.StatusCode >= 300 {
		defer func() { _ = response.Body.Close() }() // it was read
		return nil, c.problem(response)
	}
	return response, nil
}

// lost is the error of a request that was not answered.
func (c *Client) lost(ctx context.Context, err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		err = failed.Err // without method and address
	}
	if ctx.Err() != nil {
		return &service.Error{Outcome: service.Stopped, Object: c.name, Problem: "the service was not waited for any longer", Err: context.Cause(ctx)}
	}
	return &service.Error{
		Outcome: service.Stopped, Object: c.name, Problem: ErrNoService.Error(), Hint: "see whether hydrated runs",
		Err: &absentError{err},
	}
}

// absentError is ErrNoService with its reason.
type absentError struct{ reason error }

func (n *absentError) Error() string        { return n.reason.Error() }
func (n *absentError) Unwrap() error        { return n.reason }
func (n *absentError) Is(target error) bool { return target == ErrNoService }

// problem is the error that an answer tells of.
func (c *Client) problem(response *http.Response) error {
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type")) // an unknown one is none of ours
	text, err := io.ReadAll(io.LimitReader(response.Body, mostAnswerBytes))
	var p Problem
	if kind != ProblemType || err != nil || json.Unmarshal(text, &p) != nil || p.Detail == "" {
		return &service.Error{
			Outcome: service.Failed, Object: c.name, Problem: "it answered " + response.Status, Hint: "is it a service of decant, and of this version?",
		}
	}
	detail := p.Detail
	for _, e := range p.Errors {
		detail += "; " + strings.TrimPrefix(e.Location+": ", ": ") + e.Message
	}
	outcome := service.Outcome(p.ExitCode)
	if outcome < service.Failed || outcome > service.Refused {
		outcome = service.Failed
	}
	return &refusal{err: &service.Error{Outcome: outcome, Problem: detail, Hint: p.Hint}, problem: p}
}

// refusal is a *service.Error that knows the problem from which it was made.
type refusal struct {
	err     *service.Error
	problem Problem
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }
func (r *refusal) As(target any) bool {
	if to, ok := target.(**Problem); ok {
		*to = &r.problem
		return true
	}
	return false
}
