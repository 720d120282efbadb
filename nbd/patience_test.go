package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// withoutClock runs a test against a server in which time goes by only when everybody
// waits, so that it can be told to the second when the server loses patience.
func withoutClock(t *testing.T, d Device, test func(t *testing.T, p net.Conn, gone <-chan time.Duration)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server, err := NewServer(Config{Exports: []Export{{Device: d}}})
		if err != nil {
			t.Fatal(err)
		}
		ours, its := net.Pipe()
		gone, start := make(chan time.Duration, 1), time.Now()
		go func() {
			server.serveConnection(context.Background(), its)
			gone <- time.Since(start)
		}()
		test(t, ours, gone)
		ours.Close()
		synctest.Wait()
		if free := server.memory.free; free != server.config.Limits.ServerBytes {
			t.Errorf("%d bytes are free", free)
		}
	})
}

func enterOverPipe(t *testing.T, p net.Conn) {
	t.Helper()
	for _, step := range []struct {
		take int
		say  []byte
	}{
		{18, binary.BigEndian.AppendUint32(nil, flagFixedNewstyle)},
		{0, optionMessage(optExportName, nil)},
		{134, nil},
	} {
		if _, err := io.ReadFull(p, make([]byte, step.take)); err != nil {
			t.Fatal(err)
		}
		say(t, p, step.say)
	}
}

func say(t *testing.T, p net.Conn, b []byte) {
	t.Helper()
	if _, err := p.Write(b); err != nil {
		t.Fatal(err)
	}
}

func requirePatience(t *testing.T, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("the server lost patience after %v, want %v to %v", got, least, most)
	}
}

// fault 73: ten seconds for everything, however many steps they are spread over.
func TestFault73HandshakeTakesTenSeconds(t *testing.T) {
	withoutClock(t, newMemory(mib), func(t *testing.T, p net.Conn, gone <-chan time.Duration) {
		go io.Copy(io.Discard, p) //nolint:errcheck // ends with the connection
		say(t, p, binary.BigEndian.AppendUint32(nil, flagFixedNewstyle))
		for {
			if _, err := p.Write(optionMessage(optList, nil)); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		requirePatience(t, <-gone, 10*time.Second, 11*time.Second)
	})
}

// fault 77: a client that is slow, but not too slow, may write all that it can.
func TestFault77SlowPayloadArrives(t *testing.T) {
	d := newMemory(32 * mib)
	withoutClock(t, d, func(t *testing.T, p net.Conn, _ <-chan time.Duration) {
		enterOverPipe(t, p)
		for range 2 {
			say(t, p, request{command: cmdWrite, length: 32 * mib}.appendTo(nil))
			for i := range 32 {
				time.Sleep(14 * time.Second)
				say(t, p, pattern(mib, byte(i)))
			}
			if _, err := io.ReadFull(p, make([]byte, simpleReplyBytes)); err != nil {
				t.Fatal(err)
			}
		}
		if len(d.seen()) != 2 {
			t.Errorf("the device saw %v", d.seen())
		}
	})
}

// fault 77: a byte now and then is not enough.
func TestFault77TricklingPayloadEndsTheConnection(t *testing.T) {
	d := newMemory(mib)
	withoutClock(t, d, func(t *testing.T, p net.Conn, gone <-chan time.Duration) {
		enterOverPipe(t, p)
		say(t, p, request{command: cmdWrite, length: mib}.appendTo(nil))
		for {
			if _, err := p.Write([]byte{1}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		requirePatience(t, <-gone, 15*time.Second, 32*time.Second) // and a second for the parting
		requireAccesses(t, d.seen())
	})
}

// fault 77: the same in the other direction.
func TestFault77TricklingRepliesEndTheConnection(t *testing.T) {
	withoutClock(t, newMemory(32*mib), func(t *testing.T, p net.Conn, gone <-chan time.Duration) {
		enterOverPipe(t, p)
		say(t, p, request{command: cmdRead, length: 32 * mib}.appendTo(nil))
		for {
			if _, err := io.ReadFull(p, make([]byte, 1)); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		requirePatience(t, <-gone, 15*time.Second, 31*time.Second)
	})
}

// fault 77: slow replies do arrive.
func TestFault77SlowRepliesArrive(t *testing.T) {
	withoutClock(t, randomMemory(32*mib), func(t *testing.T, p net.Conn, _ <-chan time.Duration) {
		enterOverPipe(t, p)
		say(t, p, request{command: cmdRead, length: 32 * mib}.appendTo(nil))
		if _, err := io.ReadFull(p, make([]byte, simpleReplyBytes)); err != nil {
			t.Fatal(err)
		}
		for range 64 {
			time.Sleep(7 * time.Second)
			if _, err := io.ReadFull(p, make([]byte, mib/2)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// fault 77: who has nothing to ask is never disconnected, whatever he did before.
func TestFault77IdleClientMayStayForDays(t *testing.T) {
	withoutClock(t, newMemory(mib), func(t *testing.T, p net.Conn, gone <-chan time.Duration) {
		enterOverPipe(t, p)
		for range 3 {
			time.Sleep(24 * time.Hour)
			say(t, p, request{command: cmdWrite, length: 512}.appendTo(nil))
			time.Sleep(time.Second) // so that the payload has to be waited for
			say(t, p, make([]byte, 512))
			if _, err := io.ReadFull(p, make([]byte, simpleReplyBytes)); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case after := <-gone:
			t.Errorf("it was disconnected after %v", after)
		default:
		}
	})
}
