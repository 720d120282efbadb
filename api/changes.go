package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"decant/api/client"
	"decant/service"
)

// noBody is what operations without parameters take: nothing, or an empty object.
type noBody struct {
	MigrationPath
	Body *struct{} `required:"false"`
}

func (s *Server) registerChanges(a huma.API, looks chan struct{}, op describe) {
	start := op(http.MethodPost, "/v1/migrations", "start-migration", "Start or resume a migration, or plan one")
	start.DefaultStatus = http.StatusAccepted
	start.Responses = map[string]*huma.Response{
		"200": jsonResponse[service.Plan](a, "With dry_run: what would be done. Nothing was changed."),
		"202": jsonResponse[service.Status](a, "It runs, or waits for its turn. The header Location has its place."),
	}
	start.Errors = []int{400, 409, 413, 415, 422, 429, 503}
	huma.Register(a, start, s.startMigration(looks))
	tune := op(http.MethodPatch, "/v1/migrations/{id}", "tune-migration", "Change limits while it runs")
	huma.Register(a, tune, s.tuneMigration)
	cancel := op(http.MethodPost, "/v1/migrations/{id}/cancel", "cancel-migration", "Give up a migration")
	huma.Register(a, cancel, s.cancelMigration)
	for _, verb := range []struct {
		name, summary string
		do            func(context.Context, string) (service.Status, error)
	}{
		{"pause", "Commit, and stop until it is resumed", s.Manager.Pause},
		{"resume", "Go on with a migration", s.Manager.Resume},
		{"reverse", "Bring the bytes back to the source", s.Manager.Reverse},
		{"verify", "Read back what was copied, and compare checksums", s.Manager.Verify},
	} {
		huma.Register(a, op(http.MethodPost, "/v1/migrations/{id}/"+verb.name, verb.name+"-migration", verb.summary),
			func(ctx context.Context, input *noBody) (*answer[service.Status], error) {
				status, err := verb.do(ctx, input.ID)
				if err != nil {
					return nil, problemOf(err)
				}
				return &answer[service.Status]{status}, nil
			})
	}
}

// jsonResponse describes an answer.
func jsonResponse[T any](a huma.API, description string) *huma.Response {
	schema := schemaOf[T](a)
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
}

type startInput struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"128" pattern:"^[!-~]*$" doc:"the same key again gives the same migration, and starts no other"`
	DryRun         bool   `query:"dry_run" doc:"as in the body"`
	Body           client.NewMigration
}

type startOutput struct {
	Status   int
	Location string `header:"Location"`
	Body     any
}

func (s *Server) startMigration(looks chan struct{}) func(context.Context, *startInput) (*startOutput, error) {
	return func(ctx context.Context, input *startInput) (*startOutput, error) {
		request, err := requestOf(input.Body)
		if err != nil {
			return nil, problemOf(err)
		}
		if input.DryRun || input.Body.DryRun {
			return s.plan(ctx, looks, request)
		}
		status, err := s.Manager.Start(ctx, request, service.StartOptions{Priority: input.Body.Priority, IdempotencyKey: input.IdempotencyKey})
		if err != nil {
			return nil, problemOf(err)
		}
		return &startOutput{Status: http.StatusAccepted, Location: "/v1/migrations/" + status.ID, Body: status}, nil
	}
}

// plan is a dry run. What preflight refuses says how far it had come.
func (s *Server) plan(ctx context.Context, looks chan struct{}, request service.Request) (*startOutput, error) {
	release, err := take(ctx, looks)
	if err != nil {
		return nil, err
	}
	defer release()
	plan, err := s.Manager.Plan(ctx, request)
	if err != nil {
		var p *problem
		if err := problemOf(err); errors.As(err, &p) && plan.Source != "" {
			p.Plan = &plan
		}
		return nil, p
	}
	return &startOutput{Status: http.StatusOK, Body: plan}, nil
}

type tuneInput struct {
	MigrationPath
	Body client.Tuning
}

func (s *Server) tuneMigration(ctx context.Context, input *tuneInput) (*answer[service.Status], error) {
	b := input.Body
	if b == (client.Tuning{}) {
		return nil, newProblem(http.StatusBadRequest, service.Usage, "nothing to change was named", "give bwlimit, threshold or priority")
	}
	status, err := s.Manager.Tune(ctx, input.ID, service.Tuning{
		BytesPerSecond: (*int64)(b.BWLimit), ThresholdRegions: b.Threshold, Priority: b.Priority,
	})
	if err != nil {
		return nil, problemOf(err)
	}
	return &answer[service.Status]{status}, nil
}

type cancelInput struct {
	MigrationPath
	Body *client.Cancellation `required:"false"`
}

func (s *Server) cancelMigration(ctx context.Context, input *cancelInput) (*answer[service.Status], error) {
	options := service.CancelOptions{}
	if input.Body != nil {
		options.Reverse = input.Body.Reverse
	}
	status, err := s.Manager.Cancel(ctx, input.ID, options)
	if err != nil {
		return nil, problemOf(err)
	}
	return &answer[service.Status]{status}, nil
}

func sortNewestFirst(list []service.Status) {
	slices.SortStableFunc(list, func(a, b service.Status) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
}
