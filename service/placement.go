package service

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"decant/journal"
	"decant/loopdev"
	"decant/thin"
)

// stamp is how the journal of a migration looks from outside.
func (s *Service) stamp(id string) stamp {
	var out stamp
	if info, err := os.Stat(s.journalPath(id)); err == nil {
		out.journalBytes, out.journalAt = info.Size(), info.ModTime()
	}
	if info, err := os.Stat(s.journalPath(id) + "-wal"); err == nil {
		out.logBytes, out.logAt = info.Size(), info.ModTime()
	}
	return out
}

// disks names the disks under both ends of a migration, as far as they can be seen now.
func (s *Service) disks(k known) []string {
	if k.err != nil || k.ended() {
		return nil
	}
	all := append(s.disksOf(k.superblock.Source), s.disksOf(k.superblock.Destination)...)
	slices.Sort(all)
	return slices.Compact(all)
}

// disksOf is none where an end is not to be found; opening it says what is wrong.
func (s *Service) disksOf(id journal.Identity) []string {
	if disks, err := loopdev.DisksBelow(id.Path); err == nil {
		return disks
	}
	switch id.Kind {
	case "volume":
		return s.disksOfPool(id)
	case groupVolumeKind:
		group, _, _ := strings.Cut(id.Name, "/")
		return []string{"volume group " + group} // its volume is not active
	}
	return nil
}

// disksOfPool finds the disks of a volume that is not active now.
func (s *Service) disksOfPool(id journal.Identity) []string {
	name, _, _ := splitVolume(id.Name)
	pool, err := s.pools.Open(name)
	if err != nil {
		return nil
	}
	info, err := pool.Info()
	if err := errors.Join(err, pool.Close()); err != nil {
		return nil
	}
	var all []string
	for _, path := range []string{info.Dir, info.Data, info.Metadata} {
		if path == "" {
			continue
		}
		if disks, err := loopdev.DisksBelow(path); err == nil {
			all = append(all, disks...)
		}
	}
	return all
}

// PoolStatus is a pool that migrations can use, or do.
type PoolStatus struct {
	thin.PoolInfo
	SizeBytes     int64  `json:"size_bytes"`
	UsedBytes     int64  `json:"used_bytes"`
	ReservedBytes int64  `json:"reserved_bytes"`
	Problem       string `json:"problem,omitempty"` // why there are no figures
}

// poolsAnd is the pools of thinctl, and of LVM those that the volumes are in.
func (s *Service) poolsAnd(volumes []string) ([]PoolStatus, error) {
	names, err := s.pools.List()
	if err != nil {
		return nil, refuse(s.stateDir, "the list of pools cannot be read", "", err)
	}
	list := []PoolStatus{}
	for _, name := range names {
		pool, err := s.pools.Open(name)
		list = append(list, poolStatus(name, pool, err))
	}
	slices.Sort(volumes)
	for _, volume := range slices.Compact(volumes) {
		t := identityTarget(journal.Identity{Kind: groupVolumeKind, Name: volume})
		pool, err := s.openPool(t)
		p := poolStatus(t.pool, pool, err)
		if !slices.ContainsFunc(list, func(o PoolStatus) bool { return o.Kind == p.Kind && o.Name == p.Name && o.UUID == p.UUID }) {
			list = append(list, p)
		}
	}
	return list, nil
}

// poolStatus asks an open pool and closes it.
func poolStatus(name string, pool thin.Pool, err error) PoolStatus {
	p := PoolStatus{PoolInfo: thin.PoolInfo{Name: name}}
	if err == nil {
		var info thin.PoolInfo
		info, err = pool.Info()
		err = errors.Join(err, pool.Close())
		if err == nil {
			p.PoolInfo = info
		}
	}
	if err != nil {
		p.Problem = err.Error()
	}
	p.SizeBytes, p.UsedBytes = p.DataBlocks*p.BlockBytes, p.DataUsedBlocks*p.BlockBytes
	p.ReservedBytes = p.ReservedBlocks * p.BlockBytes
	return p
}

// poolsFor is how long an answer about pools is good; LVM takes its time for one.
const poolsFor = 2 * time.Second

// poolCache keeps the last answer about pools, so that many readers cost as one.
type poolCache struct {
	busy chan struct{} // holds one: whoever has it looks
	at   time.Time
	list []PoolStatus
	err  error
}

// Pools is the pools of thinctl, and of LVM those that a migration has an end in, as they
// were at most two seconds ago.
func (m *Manager) Pools(ctx context.Context) ([]PoolStatus, error) {
	p := &m.pools
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	case <-ctx.Done():
		return nil, &Error{Outcome: Stopped, Problem: "the pools have not answered", Err: context.Cause(ctx)}
	}
	if p.at.IsZero() || time.Since(p.at) > poolsFor {
		p.list, p.err = m.service.poolsAnd(m.groupVolumes())
		p.at = time.Now()
	}
	return slices.Clone(p.list), p.err
}

// groupVolumes are the ends that are volumes of LVM, of migrations that have not been
// given up.
func (m *Manager) groupVolumes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var volumes []string
	for _, j := range m.jobs {
		if j.state != StateCancelled && j.state != StateReversed {
			volumes = append(volumes, j.summary.groupVolumes...)
		}
	}
	return volumes
}
