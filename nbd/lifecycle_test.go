package nbd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

func TestDisconnectEndsAfterAllIsAnswered(t *testing.T) {
	d := newMemory(mib)
	release := make(chan struct{})
	d.before = func(access) error { <-release; return nil }
	p := ready(t, serveDevice(t, d))
	for i := range 10 {
		p.request(request{command: cmdRead, length: 512, cookie: uint64(i)})
	}
	p.request(request{command: cmdDisconnect})
	close(release)
	for range 10 {
		if _, e := p.simple(); e != success {
			t.Errorf("error %d", e)
		}
		p.take(512)
	}
	p.gone()
}

func TestWaitIdleWaitsForTheLastClient(t *testing.T) {
	s := serveDevice(t, newMemory(mib))
	if err := s.WaitIdle(context.Background()); err != nil {
		t.Errorf("without a client: %v", err)
	}
	first, second := ready(t, s), ready(t, s)
	greeted(t, s) // is no client yet
	if n := s.Clients(); n != 2 {
		t.Errorf("%d clients, want 2", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if err := s.WaitIdle(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with two clients: %v", err)
	}
	idle := make(chan error, 1)
	go func() { idle <- s.WaitIdle(context.Background()) }()
	first.Close()
	second.alive()
	second.request(request{command: cmdDisconnect})
	second.gone()
	if err := <-idle; err != nil {
		t.Error(err)
	}
}

func TestStopWhenIdleCutsNobodyOff(t *testing.T) {
	s := serveDevice(t, newMemory(mib))
	p := ready(t, s)
	late := greeted(t, s)
	s.StopWhenIdle()
	p.alive()
	another := ready(t, s) // as long as somebody is there
	p.Close()
	another.alive()
	another.Close()
	if err := <-s.ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	s.ended <- nil
	late.gone()
}

// A client that comes to its first request too late is told so.
func TestNobodyIsLetInOnceTheServerHasStopped(t *testing.T) {
	g := newGate()
	if !g.begin() {
		t.Fatal("nobody is let in")
	}
	g.stopWhenIdle()
	if !g.begin() {
		t.Error("nobody is let in while a client is there")
	}
	g.end()
	g.end()
	if g.begin() || g.enter("somebody", Limits{Connections: 9, PeerConnections: 9}) == nil {
		t.Error("somebody is let in")
	}
	select {
	case <-g.closed:
	default:
		t.Error("nobody is told")
	}
}

// The end of the server does not take replies away that are still on their way, though
// the client has said more than the server has read.
func TestLastRepliesReachAClientThatHasSaidMore(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := randomMemory(mib)
	server, err := NewServer(Config{Exports: []Export{{Device: d}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, ln) }()
	stream, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	p := &peer{t: t, Conn: stream, in: bufio.NewReaderSize(stream, 16)}
	p.must(stream.(*net.TCPConn).SetReadBuffer(4096))
	p.must(stream.SetDeadline(time.Now().Add(patience)))
	p.take(18)
	p.say([]byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes})
	p.enter("")
	const n = 256 * kib
	p.request(request{command: cmdRead, length: n})
	p.simple()
	p.say(make([]byte, 3)) // of a next request
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(p.take(n), d.content(0, n)) {
		t.Error("the answer is wrong")
	}
}

func TestStopWhenIdleWithoutClientsStopsAtOnce(t *testing.T) {
	s := serveDevice(t, newMemory(mib))
	s.StopWhenIdle()
	if err := <-s.ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	s.ended <- nil
}

func TestEndOfServeEndsIdleClientsAndHandshakes(t *testing.T) {
	s := serveDevice(t, newMemory(mib))
	p, q, r := ready(t, s), greeted(t, s), connect(t, s)
	r.take(18)
	s.wait(t)
	p.gone()
	q.gone()
	r.gone()
}

func TestListenerThatFailsEndsServe(t *testing.T) {
	server, err := NewServer(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ListenUnix(t.TempDir() + "/s")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := server.Serve(context.Background(), ln); err == nil {
		t.Error("Serve on a closed listener returns nil")
	}
}

func TestServersThatMakeNoSenseAreRefused(t *testing.T) {
	d := newMemory(mib)
	for name, c := range map[string]Config{
		"no device":            {Exports: []Export{{}}},
		"block of 3":           {Exports: []Export{{Device: d, MinBlockBytes: 3}}},
		"block of 128 KiB":     {Exports: []Export{{Device: d, MinBlockBytes: 128 * kib}}},
		"preferred below 512":  {Exports: []Export{{Device: d, PreferredBlockBytes: 256}}},
		"preferred below min":  {Exports: []Export{{Device: d, MinBlockBytes: 8192, PreferredBlockBytes: 4096}}},
		"hydrates without map": {Exports: []Export{{Device: d, Hydrates: true}}},
		"same name":            {Exports: []Export{{Device: d}, {Device: d}}},
		"negative size":        {Exports: []Export{{Device: &huge{bytes: -1}}}},
		"no connections":       {Limits: Limits{Connections: -1}},
		"too little memory":    {Limits: Limits{ConnectionBytes: mib}},
		"TLS without keys":     {RequireTLS: true},
	} {
		if _, err := NewServer(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// switched is a device that may refuse changes.
type switched struct {
	*memory
	locked bool
}

func (s *switched) ReadOnly() bool { return s.locked }

func TestDevicesMayBeReadOnlyThemselves(t *testing.T) {
	for _, locked := range []bool{false, true} {
		p := greeted(t, serveDevice(t, &switched{newMemory(mib), locked}))
		if flags := p.enter(""); (flags&flagReadOnly != 0) != locked {
			t.Errorf("locked is %v, the flags are %#x", locked, flags)
		}
		p.expect(request{command: cmdTrim, length: 512}, map[bool]errno{false: success, true: errPerm}[locked])
	}
}
