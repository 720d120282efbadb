// Package api is the service as others see it: the migrations that a service.Manager
// runs, over HTTP. Here is the server; the client that the programs use, and the
// documents that the two exchange, are in api/client.
//
// # Routes
//
//	GET   /v1/migrations                  {"migrations": [Status], "total": N}; ?state= ?skip= ?limit=
//	POST  /v1/migrations                  {source, destination, options, priority, dry_run}: 202 with the
//	                                      Status, or 200 with the Plan of a dry run; header Idempotency-Key
//	GET   /v1/migrations/{id}             Status with bad, transactions, journal; ?cells=N adds map
//	PATCH /v1/migrations/{id}             {bwlimit, threshold, priority}: Status
//	POST  /v1/migrations/{id}/pause       Status; so do resume, reverse, verify, and cancel {reverse}
//	GET   /v1/migrations/{id}/map         {"cells": [{state, hydrated}], ...}; ?cells=N
//	GET   /v1/migrations/{id}/explain     Explanation; ?offset=N
//	GET   /v1/migrations/{id}/events      server-sent events of one migration; ?after=N|now
//	GET   /v1/events                      the same of all
//	GET   /v1/pools                       {"pools": [PoolStatus]}
//	GET   /v1/info, /healthz              which service this is, and on which state directory
//	GET   /metrics                        for Prometheus
//	GET   /openapi.yaml, /v1/openapi.yaml this, exactly; checked in as api/openapi.yaml
//
// An event's name is its kind, its id the number of service.SequencedEvent, its data the
// JSON of `migrate --progress=json`. A reader that comes back sends the last id that it
// has seen as Last-Event-ID. The event "gap" says that some were lost: ask for the state
// anew. A reader that does not read for ten seconds is left.
//
// Whatever does not succeed is an application/problem+json with detail, hint and the exit
// code that the command line has for it.
//
// # Who may do what
//
// A Unix socket serves root, the user of the service, and the members of one group; the
// kernel says who it is. Everybody else is left without an answer. The network is served
// only with a token, which every request to the API shows as "Authorization: Bearer",
// and under known names only. The page and its files need no token: they are the same
// for everybody.
//
// Requests that change something are POST or PATCH with the content type
// application/json, also without a body: no form of a page can send that.
//
// # Bounds
//
// Everything that a client can make grow has a limit: connections, event streams, bytes
// and depth of a body, the time in which it has to come, requests that read journals at
// a time, the number of migrations that wait (the manager's), labels of metrics.
package api
