//go:build testkernel

package inside

import (
	"strconv"
	"strings"
)

// group is a volume group of LVM on a slice of the disk.
type group struct {
	s    *site
	name string
}

func (s *site) newGroup(bytes int64) *group {
	s.Helper()
	s.slice(mib) // at the start of the disk LVM would find the same label on both
	on := s.slice(bytes)
	g := &group{s: s, name: "group" + on.name}
	s.do("vgcreate", "-qq", "-s", "1m", g.name, on.path())
	s.Cleanup(func() { s.do("vgremove", "-qq", "-ff", "-y", g.name) })
	return g
}

// thinPool makes a thin pool with chunks of 64 KiB.
func (g *group) thinPool(name string, bytes int64, flags ...string) {
	g.s.Helper()
	g.s.do("lvcreate", append([]string{"-qq", "-y", "-T", "-L", itoa(bytes) + "b", "-c", "64k", "--poolmetadatasize", "4m", g.name + "/" + name}, flags...)...)
}

// thinVolume makes a thin volume and returns its path.
func (g *group) thinVolume(pool, name string, bytes int64) string {
	g.s.Helper()
	g.s.do("lvcreate", "-qq", "-y", "-V", itoa(bytes)+"b", "-n", name, "--thinpool", g.name+"/"+pool)
	return "/dev/" + g.name + "/" + name
}

// thinDevice is a thin volume as a device.
func (g *group) thinDevice(pool, name string, bytes int64) *device {
	g.s.Helper()
	g.thinVolume(pool, name, bytes)
	return &device{s: g.s, name: g.name + "-" + name, bytes: bytes}
}

// poolStatus is that of a pool.
func (g *group) poolStatus(name string) poolStatus {
	g.s.Helper()
	d := &device{s: g.s, name: g.poolDevice(name)}
	return (&pool{device: d}).poolStatus()
}

// poolDevice is the name of the pool's device.
func (g *group) poolDevice(pool string) string { return g.name + "-" + pool + "-tpool" }

func (g *group) linearVolume(name string, bytes int64) string {
	g.s.Helper()
	g.s.do("lvcreate", "-qq", "-y", "-Zn", "-Wn", "-L", itoa(bytes)+"b", "-n", name, g.name)
	return "/dev/" + g.name + "/" + name
}

// extend grows a pool.
func (g *group) extend(pool string, bytes int64) {
	g.s.Helper()
	g.s.do("lvextend", "-qq", "-L", "+"+itoa(bytes)+"b", g.name+"/"+pool)
}

// parseUsed reads "used/total".
func parseUsed(field string) (int64, error) {
	used, _, _ := strings.Cut(field, "/")
	return strconv.ParseInt(used, 10, 64)
}
