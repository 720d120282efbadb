package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fileDevice is a sparse file, the simplest real device.
type fileDevice struct {
	*os.File
	bytes int64
}

func newFile(t testing.TB, content []byte) *fileDevice {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	// Only what is not zero takes space.
	for off := 0; off < len(content); off += 64 * kib {
		p := content[off:min(off+64*kib, len(content))]
		if bytes.Equal(p, make([]byte, len(p))) {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	return &fileDevice{f, int64(len(content))}
}

func (f *fileDevice) Bytes() int64 { return f.bytes }
func (f *fileDevice) Flush() error { return f.Sync() }
func (f *fileDevice) Discard(off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, off, n)
}
func (f *fileDevice) Zero(off, n int64) error { return f.Discard(off, n) }

func (f *fileDevice) Extents(off, n int64) ([]Extent, error) {
	var all []Extent
	for end := min(off+n, f.bytes); off < end; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = end, nil
		}
		if err != nil {
			return nil, err
		}
		if data > off {
			all = append(all, Extent{Bytes: min(data, end) - off, Hole: true, Zero: true})
			off = data
			continue
		}
		hole, err := unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		all = append(all, Extent{Bytes: hole - off, Hydrated: true})
		off = hole
	}
	return all, nil
}

func (f *fileDevice) content(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// holey is content with data and holes of different sizes.
func holey(bytes int) []byte {
	b := make([]byte, bytes)
	for off, n := 0, 64*kib; off < bytes; off, n = off+3*n, n+64*kib {
		copy(b[off:], pattern(min(n, bytes-off), byte(off>>16)|1))
	}
	return b
}

// run runs a program that nobody here has written. A hanging one fails the test.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir() // some leave things behind
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestNbdinfoUnderstandsTheServer(t *testing.T) {
	d := newFile(t, holey(8*mib))
	s := serve(t, Config{Exports: []Export{
		{Name: "disk", Description: "a disk", Device: d, Hydrates: true, MinBlockBytes: 512, PreferredBlockBytes: 64 * kib},
		{Name: "€/../x y", Device: newMemory(mib), ReadOnly: true},
	}})
	var info struct {
		Exports []struct {
			Name        string `json:"export-name"`
			Description string
			Contexts    []string
			Size        int64 `json:"export-size"`
			ReadOnly    bool  `json:"is_read_only"`
			DF          bool  `json:"can_df"`
			FUA         bool  `json:"can_fua"`
			Multi       bool  `json:"can_multi_conn"`
			Trim        bool  `json:"can_trim"`
			Zero        bool  `json:"can_zero"`
			FastZero    bool  `json:"can_fast_zero"`
			Min         int64 `json:"block_size_minimum"`
			Preferred   int64 `json:"block_size_preferred"`
			Max         int64 `json:"block_size_maximum"`
		}
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--list", s.uri(""))), &info); err != nil {
		t.Fatal(err)
	}
	if len(info.Exports) != 2 {
		t.Fatalf("%+v", info)
	}
	disk, other := info.Exports[0], info.Exports[1]
	if disk.Name != "disk" || disk.Description != "a disk" || disk.Size != 8*mib || disk.ReadOnly || !disk.DF || !disk.FUA || !disk.Multi ||
		!disk.Trim || !disk.Zero || !disk.FastZero || disk.Min != 512 || disk.Preferred != 64*kib || disk.Max != MaxPayloadBytes ||
		strings.Join(disk.Contexts, " ") != contextAllocation+" "+contextHydrated {
		t.Errorf("%+v", disk)
	}
	if other.Name != "€/../x y" || !other.ReadOnly || other.Trim || other.Zero || len(other.Contexts) > 0 {
		t.Errorf("%+v", other)
	}
	for context, zero := range map[string]uint32{contextAllocation: stateHole | stateZero, contextHydrated: 0} {
		var extents []struct {
			Offset, Length int64
			Type           uint32
		}
		if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--map="+context, s.uri("disk"))), &extents); err != nil {
			t.Fatal(err)
		}
		for at, e := int64(0), 0; at < 8*mib; at, e = at+extents[e].Length, e+1 {
			if e == len(extents) || extents[e].Offset != at {
				t.Fatalf("%s: nothing at %d of %v", context, at, extents)
			}
			b := d.content(t)[at : at+extents[e].Length]
			isZero := bytes.Equal(b, make([]byte, len(b)))
			if isZero != (extents[e].Type == zero) {
				t.Errorf("%s: %+v, and zero is %v", context, extents[e], isZero)
			}
		}
	}
}

func TestNbdcopyCopiesBothWays(t *testing.T) {
	content := holey(24*mib + 512)
	d := newFile(t, content)
	s := serveDevice(t, d)
	out := filepath.Join(t.TempDir(), "out")
	run(t, "nbdcopy", s.uri(""), out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
		t.Errorf("copied out: %v", err)
	}
	empty := newFile(t, bytes.Repeat([]byte{0xaa}, len(content)))
	s2 := serveDevice(t, empty)
	run(t, "nbdcopy", "--flush", "--connections=4", "--requests=32", out, s2.uri(""))
	if !bytes.Equal(empty.content(t), content) {
		t.Error("copied in: not the same")
	}
	// From server to server.
	again := newFile(t, make([]byte, len(content)))
	s3 := serveDevice(t, again)
	run(t, "nbdcopy", s.uri(""), s3.uri(""))
	if !bytes.Equal(again.content(t), content) {
		t.Error("copied across: not the same")
	}
}

func TestQemuImgUsesTheServer(t *testing.T) {
	content := holey(16 * mib)
	d := newFile(t, content)
	s := serveDevice(t, d)
	dir := t.TempDir()
	qcow := filepath.Join(dir, "x.qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", s.uri(""), qcow)
	run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow, s.uri(""))
	if got, want := run(t, "qemu-img", "map", "--output=json", "-f", "raw", s.uri("")), run(t, "qemu-img", "map", "--output=json", "-f", "raw", d.Name()); dataOf(t, got) != dataOf(t, want) {
		t.Errorf("the map is %s, of the file itself %s", got, want)
	}
	target := newFile(t, bytes.Repeat([]byte{0xaa}, len(content)))
	s2 := serveDevice(t, target)
	run(t, "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", qcow, s2.uri(""))
	if !bytes.Equal(target.content(t), content) {
		t.Error("converted: not the same")
	}
	run(t, "qemu-img", "bench", "-f", "raw", "-w", "-c", "500", "-d", "32", "-s", "8192", "--flush-interval=50", s2.uri(""))
}

// dataOf is where a map of qemu-img says that there is data.
func dataOf(t *testing.T, text string) string {
	t.Helper()
	var extents []struct {
		Start, Length int64
		Data, Zero    bool
	}
	if err := json.Unmarshal([]byte(text), &extents); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return fmt.Sprint(extents)
}

func TestQemuIoUsesTheServer(t *testing.T) {
	s := serve(t, Config{Exports: []Export{{Device: newFile(t, holey(8*mib)), FastZero: true}}})
	out := run(t, "qemu-io", "-f", "raw", "-t", "none",
		"-c", "write -P 1 1M 64k", "-c", "write -f -P 2 1088k 64k", "-c", "aio_write -P 3 2M 1M", "-c", "aio_write -z 3M 1M", "-c", "aio_flush",
		"-c", "write -z -u 4M 64k", "-c", "write -z -u -n 5M 64k", "-c", "write -z 6M 64k", "-c", "discard 7M 64k", "-c", "flush",
		"-c", "read -P 1 1M 64k", "-c", "read -P 2 1088k 64k", "-c", "read -P 3 2M 1M", "-c", "read -P 0 3M 1M",
		"-c", "read -P 0 4M 64k", "-c", "read -P 0 5M 64k", "-c", "read -P 0 6M 64k", "-c", "read -P 0 7M 64k",
		"-c", "readv -P 3 2M 512 4096 512", "-c", "write -P 9 8191k 1k", "-c", "read -P 9 8191k 1k",
		s.uri(""))
	// It ends with code 0 although something is wrong.
	if strings.Contains(strings.ToLower(out), "failed") || strings.Contains(out, "error") {
		t.Error(out)
	}
}

func TestFioVerifiesTheServer(t *testing.T) {
	s := serveDevice(t, newFile(t, make([]byte, 16*mib)))
	for _, depth := range []string{"1", "32"} {
		run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+s.uri(""), "--rw=randwrite", "--bs=8k", "--size=16m",
			"--iodepth="+depth, "--verify=crc32c", "--verify_fatal=1", "--fsync=37", "--randseed=7", "--output=/dev/null")
	}
}

func TestLibnbdAndQemuUseTLS(t *testing.T) {
	a := newAuthority(t)
	client := a.issue("client")
	dir := a.directory(&client)
	content := holey(4 * mib)
	s := serve(t, Config{
		Exports: []Export{{Device: newFile(t, content)}}, TLS: a.server(tls.RequireAndVerifyClientCert), RequireTLS: true,
	})
	// libnbd compares the certificate with the name in its URI only, so it is told not to.
	uri := "nbds+unix:///?socket=" + s.socket + "&tls-certificates=" + dir
	if info := run(t, "nbdinfo", uri+"&tls-verify-peer=false"); !strings.Contains(info, "with TLS") {
		t.Error(info)
	}
	out := filepath.Join(t.TempDir(), "out")
	run(t, "qemu-img", "convert", "-O", "raw",
		"--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir,
		"--image-opts", "driver=raw,file.driver=nbd,file.path="+s.socket+",file.tls-creds=t,file.tls-hostname=server", out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
		t.Errorf("copied over TLS: %v", err)
	}
}

// foreign starts a server that nobody here has written, and waits until it is there.
func foreign(t testing.TB, socket, name string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop = func() {
		cmd.Process.Kill()
		ended <- <-ended
	}
	t.Cleanup(stop)
	for {
		if probe, err := net.Dial("unix", socket); err == nil {
			probe.Close()
			return stop
		}
		select {
		case err := <-ended:
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, said.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func socketURI(socket string) string { return URI{Network: "unix", Address: socket}.String() }

// requireContent reads everything, and nothing where NextData says that there is none.
func requireContent(t *testing.T, c *Client, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read as a whole: %v", err)
	}
	clear(got)
	for off := int64(0); off < c.Bytes(); {
		start, end, err := c.NextData(off)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadAt(got[start:end], start); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		off = end
	}
	if !bytes.Equal(got, want) {
		t.Fatal("a hole that was told of is none")
	}
}

func TestClientReadsWhatQemuServes(t *testing.T) {
	content := holey(8 * mib)
	raw := newFile(t, content)
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			image, socket := filepath.Join(dir, "image"), filepath.Join(dir, "s")
			run(t, "qemu-img", "convert", "-f", "raw", "-O", format, raw.Name(), image)
			stop := foreign(t, socket, "qemu-nbd", "-t", "-f", format, "--discard=unmap", "-e", "8", "-k", socket, image)
			c := dial(t, socketURI(socket), Options{Connections: 2})
			if !c.KnowsHoles() || !c.CanDiscard() || c.Bytes() != 8*mib {
				t.Errorf("%+v", c.export)
			}
			requireContent(t, c, content)
			if start, _, err := c.NextData(64 * kib); start != 192*kib || err != nil {
				t.Errorf("data begins at %d, %v", start, err)
			}
			want := bytes.Clone(content)
			p := pattern(100*kib, 77)
			copy(want[3*mib+5:], p)
			clear(want[5*mib : 6*mib])
			if _, err := c.WriteAt(p, 3*mib+5); err != nil {
				t.Error(err)
			}
			requireError(t, "zero", c.Zero(5*mib, mib), nil)
			requireError(t, "flush", c.Flush(), nil)
			requireContent(t, c, want)
			requireError(t, "discard", c.Discard(6*mib, mib), nil)
			requireError(t, "flush", c.Flush(), nil)
			c.Close()
			stop()
			clear(want[6*mib : 7*mib]) // what a discarded range of these formats reads as
			compare := newFile(t, want)
			run(t, "qemu-img", "compare", "-f", format, "-F", "raw", image, compare.Name())
		})
	}
}

func TestClientReadsWhatNbdkitServes(t *testing.T) {
	content := holey(4 * mib)
	raw := newFile(t, content)
	for name, args := range map[string][]string{
		"file":                  {"file", raw.Name()},
		"read-only":             {"-r", "file", raw.Name()},
		"no structured replies": {"--no-sr", "file", raw.Name()},
		"not fixed":             {"--mask-handshake=0", "file", raw.Name()},
		"no extents":            {"--filter=noextents", "file", raw.Name()},
		"large blocks":          {"--filter=blocksize-policy", "file", raw.Name(), "blocksize-minimum=4096", "blocksize-preferred=64k", "blocksize-maximum=128k", "blocksize-error-policy=error"},
		"one connection":        {"--filter=multi-conn", "file", raw.Name(), "multi-conn-mode=disable"},
		"an export by its name": {"--filter=exportname", "file", raw.Name(), "exportname=disk", "exportname-strict=true"},
		"slow answers":          {"--filter=delay", "file", raw.Name(), "delay-read=1ms"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			foreign(t, socket, "nbdkit", append([]string{"--foreground", "--unix", socket, "--filter=nocache"}, args...)...)
			uri := socketURI(socket)
			if strings.Contains(name, "export") {
				uri = URI{Network: "unix", Address: socket, Export: "disk"}.String()
			}
			c := dial(t, uri, Options{})
			requireContent(t, c, content)
			p := make([]byte, 1000)
			if _, err := c.ReadAt(p, 12345); err != nil || !bytes.Equal(p, content[12345:13345]) {
				t.Errorf("read: %v", err)
			}
		})
	}
}

func TestClientFailsWhatNbdkitFails(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	foreign(t, socket, "nbdkit", "--foreground", "--unix", socket, "--filter=error", "memory", "1M", "error=ENOSPC", "error-pwrite-rate=100%", "error-pread=EIO", "error-pread-rate=100%")
	c := dial(t, socketURI(socket), Options{})
	_, err := c.ReadAt(make([]byte, 512), 0)
	requireError(t, "read", err, unix.EIO)
	_, err = c.WriteAt(make([]byte, 512), 0)
	requireError(t, "write", err, unix.ENOSPC)
}

// The server is killed, as often as the next one can be started.
func TestClientOutlivesNbdkit(t *testing.T) {
	content := holey(4 * mib)
	raw := newFile(t, content)
	socket := filepath.Join(t.TempDir(), "s")
	start := func() func() {
		if err := os.RemoveAll(socket); err != nil {
			t.Fatal(err)
		}
		return foreign(t, socket, "nbdkit", "--foreground", "--unix", socket, "file", raw.Name())
	}
	stop := start()
	c := dial(t, socketURI(socket), Options{})
	stopped := make(chan struct{})
	reads := make(chan int)
	go func() {
		n := 0
		defer func() { reads <- n }()
		p := make([]byte, 64*kib)
		for ; ; n++ {
			select {
			case <-stopped:
				return
			default:
			}
			off := int64(n*64*kib) % (4 * mib)
			if _, err := c.ReadAt(p, off); err != nil || !bytes.Equal(p, content[off:off+64*kib]) {
				t.Errorf("read: %v", err)
				return
			}
		}
	}()
	for range 3 {
		stop()
		stop = start()
	}
	close(stopped)
	if n := <-reads; n == 0 {
		t.Error("nothing was read")
	}
}
