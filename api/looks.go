package api

import (
	"context"
	"net/http"
	"os"

	"github.com/danielgtaylor/huma/v2"

	"decant/api/client"
	"decant/service"
)

// describe makes an operation as all of them are.
type describe func(method, path, id, summary string) huma.Operation

// MigrationPath names one migration.
type MigrationPath struct {
	ID string `path:"id" pattern:"^[0-9a-z]{1,64}$" doc:"may be shortened as long as it stays unique"`
}

// Health says that the service answers.
type Health struct {
	Status string `json:"status" enum:"ok"`
	client.Info
}

type answer[T any] struct{ Body T }

func (s *Server) info() client.Info {
	return client.Info{Service: "decant", Version: s.Config.Version, API: Version, PID: os.Getpid(), StateDir: s.StateDir}
}

func (s *Server) registerLooks(a huma.API, looks chan struct{}, op describe) {
	huma.Register(a, op(http.MethodGet, "/healthz", "health", "Whether the service answers"),
		func(context.Context, *struct{}) (*answer[Health], error) {
			return &answer[Health]{Health{Status: "ok", Info: s.info()}}, nil
		})
	huma.Register(a, op(http.MethodGet, "/v1/info", "info", "Which service this is"),
		func(context.Context, *struct{}) (*answer[client.Info], error) {
			return &answer[client.Info]{s.info()}, nil
		})
	huma.Register(a, op(http.MethodGet, "/v1/migrations", "list-migrations", "List migrations, the newest first"),
		looking(looks, s.listMigrations))
	huma.Register(a, op(http.MethodGet, "/v1/migrations/{id}", "get-migration", "Show one migration"),
		looking(looks, s.getMigration))
	huma.Register(a, op(http.MethodGet, "/v1/migrations/{id}/map", "get-map", "Show the states of its regions"),
		looking(looks, s.getMap))
	huma.Register(a, op(http.MethodGet, "/v1/migrations/{id}/explain", "explain", "Tell where the bytes at an offset are, and since when"),
		looking(looks, s.explain))
	huma.Register(a, op(http.MethodGet, "/v1/pools", "list-pools", "List pools with their fill and reservations"),
		looking(looks, s.listPools))
}

// looking makes a handler wait for its turn, and its errors problems.
func looking[I, O any](looks chan struct{}, handler func(context.Context, *I) (O, error)) func(context.Context, *I) (*answer[O], error) {
	return func(ctx context.Context, input *I) (*answer[O], error) {
		release, err := take(ctx, looks)
		if err != nil {
			return nil, err
		}
		defer release()
		body, err := handler(ctx, input)
		if err != nil {
			return nil, problemOf(err)
		}
		return &answer[O]{body}, nil
	}
}

type listQuery struct {
	State string `query:"state" maxLength:"32" doc:"only those in this state"`
	Skip  int    `query:"skip" minimum:"0" doc:"so many of the newest"`
	Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"1000"`
}

func (s *Server) listMigrations(_ context.Context, q *listQuery) (client.MigrationList, error) {
	all, err := s.Manager.List()
	if err != nil {
		return client.MigrationList{}, err
	}
	sortNewestFirst(all)
	list := client.MigrationList{Migrations: []service.Status{}}
	for _, m := range all {
		if q.State != "" && string(m.State) != q.State {
			continue
		}
		if list.Total++; list.Total > q.Skip && len(list.Migrations) < q.Limit {
			list.Migrations = append(list.Migrations, m)
		}
	}
	return list, nil
}

type getQuery struct {
	MigrationPath
	Cells int `query:"cells" minimum:"0" maximum:"65536" doc:"of the map; 0: no map"`
}

func (s *Server) getMigration(_ context.Context, q *getQuery) (client.Migration, error) {
	status, err := s.Manager.Status(q.ID)
	if err != nil {
		return client.Migration{}, err
	}
	m := client.Migration{Status: status, Transactions: []service.Transaction{}}
	detail, err := s.Manager.Show(status.ID, q.Cells)
	if err != nil {
		if status.Problem != "" {
			return m, nil // of a journal that cannot be read, this is all
		}
		return m, err
	}
	m.Map, m.Bad, m.Journal = detail.Map, detail.Bad, detail.Journal
	m.Transactions = append(m.Transactions, detail.Transactions...)
	return m, nil
}

type mapQuery struct {
	MigrationPath
	Cells int `query:"cells" minimum:"1" maximum:"65536" default:"1024"`
}

func (s *Server) getMap(_ context.Context, q *mapQuery) (client.RegionMap, error) {
	detail, err := s.Manager.Show(q.ID, q.Cells)
	if err != nil {
		return client.RegionMap{}, err
	}
	return client.RegionMap{
		ID: detail.ID, BytesTotal: detail.BytesTotal, RegionBytes: detail.RegionBytes, Regions: detail.Regions,
		Cells: append([]service.Cell{}, detail.Map...),
	}, nil
}

type explainQuery struct {
	MigrationPath
	Offset int64 `query:"offset" required:"true" minimum:"0" doc:"of the device, in bytes"`
}

func (s *Server) explain(_ context.Context, q *explainQuery) (service.Explanation, error) {
	return s.Manager.Explain(q.ID, q.Offset)
}

func (s *Server) listPools(ctx context.Context, _ *struct{}) (client.PoolList, error) {
	pools, err := s.Manager.Pools(ctx)
	return client.PoolList{Pools: append([]service.PoolStatus{}, pools...)}, err
}
