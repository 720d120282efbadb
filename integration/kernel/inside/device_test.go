//go:build testkernel

package inside

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"decant/dm"
)

type target = dm.Target

const sectorBytes = dm.SectorBytes

// device is a device-mapper device. Its table can be exchanged under its users.
type device struct {
	s     *site
	name  string
	bytes int64
}

// made counts devices, for their names.
var made int

// newDevice makes a device that is removed after the test.
func (s *site) newDevice(table ...target) *device {
	s.Helper()
	made++
	d := &device{s: s, name: fmt.Sprintf("test%d", made)}
	s.Cleanup(d.remove)
	d.activate(table...)
	return d
}

// activate makes the device with this table, after remove for example.
func (d *device) activate(table ...target) {
	d.s.Helper()
	_, err := d.s.dm.Create(d.name, "TEST-"+d.name)
	d.s.must(err)
	d.s.must(d.s.dm.Load(d.name, table))
	d.s.must(d.s.dm.Resume(d.name))
	last := table[len(table)-1]
	d.bytes = int64(last.Start+last.Length) * sectorBytes
}

// path is the device's node.
func (d *device) path() string { return dm.Path(d.name) }

// remove takes the device away. It may be gone already.
func (d *device) remove() {
	d.s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := d.s.dm.RemoveRetry(ctx, d.name); err != nil && !errors.Is(err, unix.ENXIO) {
		d.s.Error(err)
	}
}

// exchange gives the device another table, while it is in use. I/O in flight ends by
// the old one.
func (d *device) exchange(table ...target) {
	d.s.Helper()
	d.s.must(d.s.dm.Load(d.name, table))
	d.s.must(d.s.dm.Suspend(d.name, dm.SuspendOptions{NoLockFS: true}))
	d.s.must(d.s.dm.Resume(d.name))
}

// message sends a message to the target at that byte.
func (d *device) message(off int64, text string) string {
	d.s.Helper()
	answer, err := d.s.dm.Message(d.name, uint64(off/sectorBytes), text)
	d.s.must(err)
	return answer
}

// status is that of the first target.
func (d *device) status() string {
	d.s.Helper()
	status, err := d.s.dm.Status(d.name)
	d.s.must(err)
	return status[0].Params
}

// taken is where on the second disk no test has anything.
var taken int64

// slice is a part of the second disk, blank.
func (s *site) slice(bytes int64) *device {
	s.Helper()
	start := taken
	taken += bytes
	s.Cleanup(func() {
		taken = start
		// It punches the host's file, so that the next test finds zeros.
		s.do("blkdiscard", "--force", "--offset", fmt.Sprint(start), "--length", fmt.Sprint(bytes), disk(1))
	})
	return s.newDevice(target{
		Length: uint64(bytes / sectorBytes), Type: "linear",
		Params: fmt.Sprintf("%s %d", disk(1), start/sectorBytes),
	})
}

// kind makes the target for a range of a table, which leads to the same range of the
// device below.
type kind func(off, n int64) target

// of is a target of a type whose parameters begin with device and sector.
func (d *device) of(targetType, more string) kind {
	return func(off, n int64) target {
		params := fmt.Sprintf("%s %d", d.path(), off/sectorBytes)
		if more != "" {
			params += " " + more
		}
		return target{
			Start: uint64(off / sectorBytes), Length: uint64(n / sectorBytes),
			Type: targetType, Params: params,
		}
	}
}

// linear leads to d.
func (d *device) linear() kind { return d.of("linear", "") }

// flakey leads to d and has these features all the time: drop_writes, error_writes,
// or "corrupt_bio_byte NTH r|w VALUE FLAGS".
func (d *device) flakey(features string) kind {
	words := 1
	for _, c := range features {
		if c == ' ' {
			words++
		}
	}
	return d.of("flakey", fmt.Sprintf("0 3600 %d %s", words, features))
}

// dust leads to d and fails reads of its blocks of 4 KiB that a message has made bad.
func (d *device) dust() kind { return d.of("dust", "4096") }

// broken fails everything.
func broken(off, n int64) target {
	return target{Start: uint64(off / sectorBytes), Length: uint64(n / sectorBytes), Type: "error"}
}

// whole is a table of one kind on all of d.
func (d *device) whole(k kind) []target { return []target{k(0, d.bytes)} }

// with is a table that leads to d, but for one range.
func (d *device) with(off, n int64, k kind) []target {
	var table []target
	if off > 0 {
		table = append(table, d.linear()(0, off))
	}
	table = append(table, k(off, n))
	if end := off + n; end < d.bytes {
		table = append(table, d.linear()(end, d.bytes-end))
	}
	return table
}
