package api

import (
	"context"

	"decant/service"
)

// Manager is what the API needs of the migrations that the service runs. Its methods
// may be called concurrently. ManagerOf makes one of
// a *service.Manager.
type Manager interface {
	Plan(ctx context.Context, request service.Request) (service.Plan, error)
	Start(ctx context.Context, request service.Request, options service.StartOptions) (service.Status, error)
	List() ([]service.Status, error)
	Status(id string) (service.Status, error)
	Show(id string, cells int) (service.Detail, error)
	Explain(id string, offset int64) (service.Explanation, error)
	Pause(ctx context.Context, id string) (service.Status, error)
	Resume(ctx context.Context, id string) (service.Status, error)
	Reverse(ctx context.Context, id string) (service.Status, error)
	Verify(ctx context.Context, id string) (service.Status, error)
	Cancel(ctx context.Context, id string, options service.CancelOptions) (service.Status, error)
	Tune(ctx context.Context, id string, tuning service.Tuning) (service.Status, error)
	Subscribe(id string, after uint64) (Events, error)
	Pools(ctx context.Context) ([]service.PoolStatus, error)
	Metrics() service.Metrics
}

// Events is one reader of events, as *service.Subscription.
type Events interface {
	Next(ctx context.Context) (service.SequencedEvent, error)
	Missed() bool
	Close()
}

// ManagerOf is m as the API uses it.
func ManagerOf(m *service.Manager) Manager { return manager{m} }

type manager struct{ *service.Manager }

// Subscribe implements Manager.
func (m manager) Subscribe(id string, after uint64) (Events, error) {
	return m.Manager.Subscribe(id, after)
}
