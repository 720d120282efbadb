//go:build testkernel

package inside

import (
	"fmt"
	"strings"
)

// poolOptions of a thin pool; what is zero has a default.
type poolOptions struct {
	data, metadata *device // slices of 64 MiB and 4 MiB
	blockBytes     int64   // 64 KiB
	features       string  // such as "error_if_no_space"; as the kernel has them if empty
}

// pool is a dm-thin pool that nobody but the test manages.
type pool struct {
	*device
	poolOptions
	volumes map[int]*device // by thin id
}

// newPool makes a blank pool.
func (s *site) newPool(o poolOptions) *pool {
	s.Helper()
	if o.data == nil {
		o.data = s.slice(64 * mib)
	}
	if o.metadata == nil {
		o.metadata = s.slice(4 * mib)
	}
	if o.blockBytes == 0 {
		o.blockBytes = 64 * kib
	}
	p := &pool{poolOptions: o, volumes: map[int]*device{}}
	p.device = s.newDevice(p.table())
	return p
}

func (p *pool) table() target {
	words := strings.Fields(p.features)
	blocks := p.data.bytes / p.blockBytes
	return target{
		Length: uint64(blocks * p.blockBytes / sectorBytes), Type: "thin-pool",
		Params: strings.TrimSpace(fmt.Sprintf("%s %s %d 0 %d %s", p.metadata.path(), p.data.path(),
			p.blockBytes/sectorBytes, len(words), p.features)),
	}
}

// newVolume makes a volume of the pool, and its device.
func (p *pool) newVolume(id int, bytes int64) *device {
	p.s.Helper()
	p.message(0, fmt.Sprintf("create_thin %d", id))
	v := p.s.newDevice(p.thin(id, bytes))
	p.volumes[id] = v
	return v
}

func (p *pool) thin(id int, bytes int64) target {
	return target{Length: uint64(bytes / sectorBytes), Type: "thin", Params: fmt.Sprintf("%s %d", p.path(), id)}
}

// reopen takes pool and volumes away and makes them anew, as after a reboot. In
// between it does something else, such as a repair of the metadata.
func (p *pool) reopen(between func()) {
	p.s.Helper()
	for _, v := range p.volumes {
		v.remove()
	}
	p.remove()
	if between != nil {
		between()
	}
	p.activate(p.table())
	for id, v := range p.volumes {
		v.activate(p.thin(id, v.bytes))
	}
}

// check is what thin_check says of the metadata. The pool is reopened by it.
func (p *pool) check() {
	p.s.Helper()
	p.reopen(func() { p.s.do("thin_check", p.metadata.path()) })
}

// poolStatus is the kernel's.
type poolStatus struct {
	transaction                          uint64
	metadataUsedBlocks, metadataBlocks   int64
	dataUsedBlocks, dataBlocks           int64
	mode                                 string // rw, ro, out_of_data_space, Fail
	passesDiscards, errors, needsChecked bool
}

func (p *pool) poolStatus() poolStatus {
	p.s.Helper()
	text := p.status()
	if text == "Fail" || text == "Error" {
		return poolStatus{mode: text}
	}
	var st poolStatus
	var held string
	if _, err := fmt.Sscanf(text, "%d %d/%d %d/%d %s %s", &st.transaction, &st.metadataUsedBlocks, &st.metadataBlocks,
		&st.dataUsedBlocks, &st.dataBlocks, &held, &st.mode); err != nil {
		p.s.Fatalf("status of the pool %q: %v", text, err)
	}
	st.passesDiscards = strings.Contains(text, " discard_passdown")
	st.errors = strings.Contains(text, " error_if_no_space")
	st.needsChecked = strings.Contains(text, " needs_check")
	return st
}
