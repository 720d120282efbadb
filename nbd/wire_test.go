package nbd

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// The bytes are those of the protocol's text, written down by hand.
func TestMessagesHaveTheirBytes(t *testing.T) {
	var withMessage, none, data, simple reply
	withMessage.setError(7, errNoSpc, "full")
	none.setNone(7)
	data.setData(true, request{cookie: 7, offset: 0x1000, length: 0x200}, nil)
	simple.setSimple(7, errIO)
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"request": {
			request{flags: 1, command: cmdWrite, cookie: 0x0102030405060708, offset: 0x1122334455667788, length: 0x200}.appendTo(nil),
			"25609513" + "0001" + "0001" + "0102030405060708" + "1122334455667788" + "00000200",
		},
		"option":       {optionMessage(optGo, []byte("ab")), "49484156454f5054" + "00000007" + "00000002" + "6162"},
		"option reply": {appendOptionReply(nil, optList, repErrUnsup, []byte("a"), []byte("b")), "0003e889045565a9" + "00000003" + "80000001" + "00000002" + "6162"},
		"simple reply": {simple.head[:simple.headBytes], "67446698" + "00000005" + "0000000000000007"},
		"none":         {none.head[:none.headBytes], "668e33ef" + "0001" + "0000" + "0000000000000007" + "00000000"},
		"data":         {data.head[:data.headBytes], "668e33ef" + "0001" + "0001" + "0000000000000007" + "00000208" + "0000000000001000"},
		"error":        {withMessage.head[:withMessage.headBytes], "668e33ef" + "0001" + "8001" + "0000000000000007" + "0000000a" + "0000001c" + "0004" + "66756c6c"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s is %s, want %s", name, got, c.want)
		}
	}
}

func TestRequestsAreReadAsTheyAreWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := request{
			rapid.Uint16().Draw(t, "flags"), command(rapid.Uint16().Draw(t, "command")),
			rapid.Uint64().Draw(t, "cookie"), rapid.Uint64().Draw(t, "offset"), rapid.Uint32().Draw(t, "length"),
		}
		if got, ok := parseRequest(want.appendTo(nil)); !ok || got != want {
			t.Fatalf("%+v is read as %+v", want, got)
		}
	})
	if _, ok := parseRequest(make([]byte, requestBytes)); ok {
		t.Error("zeros are a request")
	}
}

func TestErrorsKeepTheirNumbers(t *testing.T) {
	for _, e := range []errno{errPerm, errIO, errNoMem, errInval, errNoSpc, errOver, errNotSup, errShut} {
		if got := fromDevice(e.asUnix()); got != e {
			t.Errorf("%d becomes %d", e, got)
		}
	}
	if got := errno(4711).asUnix(); got != unix.EINVAL {
		t.Errorf("an unknown error is %v", got)
	}
}

func TestBuffersFitAndAreAligned(t *testing.T) {
	for _, n := range []int{1, 4095, 4096, 4097, 8192, 65536, 65537, mib, MaxPayloadBytes - 1, MaxPayloadBytes} {
		b := pools.get(n)
		if len(b.all) < n || int64(len(b.all)) != bufferBytes(n) || len(b.all) >= 2*n && len(b.all) > 4096 {
			t.Errorf("a buffer for %d bytes has %d", n, len(b.all))
		}
		if uintptr(unsafe.Pointer(&b.all[0]))%pageBytes != 0 {
			t.Errorf("a buffer for %d bytes is not aligned", n)
		}
		pools.put(b)
	}
}

func TestBudgetIsKept(t *testing.T) {
	const total = 100
	b := newBudget(total)
	var mu sync.Mutex
	used := int64(0)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for range 500 {
				n := 1 + rng.Int64N(total)
				if rng.IntN(4) > 0 || !b.tryTake(n) {
					b.take(n)
				}
				mu.Lock()
				if used += n; used > total {
					t.Errorf("%d are in use", used)
				}
				mu.Unlock()
				mu.Lock()
				used -= n
				mu.Unlock()
				b.give(n)
			}
		})
	}
	all.Wait()
	if b.free != total {
		t.Errorf("%d of %d are free in the end", b.free, total)
	}
}

// Large requests are not starved by small ones that come later.
func TestBudgetIsGivenInOrder(t *testing.T) {
	b := newBudget(10)
	b.take(6)
	got := make(chan string, 2)
	var all sync.WaitGroup
	all.Go(func() { b.take(10); got <- "large"; b.give(10) })
	for {
		b.mu.Lock()
		n := len(b.waiting)
		b.mu.Unlock()
		if n == 1 {
			break
		}
	}
	if b.tryTake(1) {
		t.Error("a small one overtakes")
	}
	all.Go(func() { b.take(1); got <- "small"; b.give(1) })
	b.give(6)
	if first := <-got; first != "large" {
		t.Errorf("%s is first", first)
	}
	all.Wait()
}

// What a read is told of piece by piece.
func TestSpansRefuseOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s spans
		have := make([]byte, 64)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			start := rapid.Int64Range(0, 63).Draw(t, "start")
			end := rapid.Int64Range(start+1, 64).Draw(t, "end")
			free := bytes.Count(have[start:end], []byte{0}) == int(end-start)
			if s.add(start, end) != free {
				t.Fatalf("[%d,%d) in %v: free is %v", start, end, s.all, free)
			}
			if !free {
				return // the connection ends here
			}
			for i := start; i < end; i++ {
				have[i] = 1
			}
			if s.bytes != int64(bytes.Count(have, []byte{1})) {
				t.Fatalf("%d bytes in %v", s.bytes, s.all)
			}
			for i := 1; i < len(s.all); i++ {
				if s.all[i-1].end >= s.all[i].start {
					t.Fatalf("%v are not in order", s.all)
				}
			}
		}
	})
}

func TestSpansAreBounded(t *testing.T) {
	var s spans
	for i := int64(0); ; i += 2 {
		if !s.add(i, i+1) {
			break
		}
		if len(s.all) > maxSpans {
			t.Fatalf("%d pieces", len(s.all))
		}
	}
}
