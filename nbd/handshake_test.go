package nbd

import (
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// fault 73: whoever does not come to a point is disconnected.
func TestFault73HandshakeHasADeadline(t *testing.T) {
	s := serve(t, Config{
		Exports: []Export{{Device: newMemory(mib)}},
		Limits:  Limits{HandshakeTime: 50 * time.Millisecond},
	})
	flags := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle)
	for name, said := range map[string][]byte{
		"nothing":                   nil,
		"half of its flags":         flags[:2],
		"no option":                 flags,
		"half of an option":         append(slices.Clone(flags), optionMessage(optGo, nil)[:10]...),
		"half of an option's data":  append(slices.Clone(flags), optionMessage(optGo, make([]byte, 100))[:50]...),
		"options that lead nowhere": append(slices.Clone(flags), optionMessage(optList, nil)...),
	} {
		t.Run(name, func(t *testing.T) {
			p := connect(t, s)
			p.take(18)
			p.say(said)
			if name == "options that lead nowhere" {
				p.answer(optList)
				p.answer(optList)
			}
			p.gone()
		})
	}
	if n := s.Clients(); n != 0 {
		t.Errorf("%d clients", n)
	}
}

// fault 73: what is no NBD is not listened to.
func TestFault73GarbageEndsTheHandshake(t *testing.T) {
	s := serveDevice(t, newMemory(mib))
	for name, said := range map[string][]byte{
		"HTTP":          []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"unknown flags": {0, 0, 0, 4},
		"no option":     append([]byte{0, 0, 0, 3}, make([]byte, 16)...),
		// Without fixed newstyle there is only EXPORT_NAME.
		"an option in the old form": append([]byte{0, 0, 0, 0}, optionMessage(optList, nil)...),
	} {
		t.Run(name, func(t *testing.T) {
			p := connect(t, s)
			p.take(18)
			p.say(said)
			p.gone()
		})
	}
}

// fault 73: connections cost something, so their number has an end.
func TestFault73ConnectionsAreLimited(t *testing.T) {
	for name, limits := range map[string]Limits{
		"in all":      {Connections: 2},
		"of one peer": {PeerConnections: 2},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, Config{Exports: []Export{{Device: newMemory(mib)}}, Limits: limits})
			first, second := ready(t, s), greeted(t, s)
			connect(t, s).gone()
			first.alive()
			second.enter("")
			// A place that becomes free can be taken.
			first.Close()
			for {
				p := connect(t, s)
				if _, err := p.in.Peek(18); err == nil {
					p.take(18)
					return
				}
			}
		})
	}
}

// fault 74: no length of the client is believed.
func TestFault74OptionLengthIsBounded(t *testing.T) {
	s := serveDevice(t, newMemory(mib))
	header := func(o option, length uint32) []byte {
		b := optionMessage(o, nil)
		binary.BigEndian.PutUint32(b[12:], length)
		return b
	}
	t.Run("absurd", func(t *testing.T) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, o := range []option{optExportName, optGo, optSetMetaContext, 0x12345678} {
			p := greeted(t, s)
			p.say(header(o, 0xffffffff))
			p.gone()
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64*mib {
			t.Errorf("%d bytes were allocated", n)
		}
	})
	t.Run("too long", func(t *testing.T) {
		p := greeted(t, s)
		p.refused(optGo, make([]byte, maxOptionBytes+1), repErrTooBig)
		p.enter("")
		p.alive()
	})
	t.Run("a name that is too long", func(t *testing.T) {
		p := greeted(t, s)
		long := strings.Repeat("x", maxNameBytes+1)
		p.refused(optGo, infoRequest(long), repErrInvalid)
		p.refused(optInfo, infoRequest(long), repErrInvalid)
		p.accept(optStructuredReply, nil)
		p.refused(optSetMetaContext, contextQuery(long), repErrInvalid)
		p.refused(optSetMetaContext, contextQuery("", long), repErrInvalid)
		p.say(optionMessage(optExportName, []byte(long)))
		p.gone()
	})
	t.Run("lengths that contradict one another", func(t *testing.T) {
		p := greeted(t, s)
		whole := infoRequest("name", infoName, infoBlockSize)
		for n := range whole {
			p.refused(optGo, whole[:n], repErrInvalid)
		}
		p.refused(optGo, append(whole, 0), repErrInvalid)
		p.accept(optStructuredReply, nil)
		whole = contextQuery("", contextAllocation, "x:")
		for n := range whole {
			p.refused(optListMetaContext, whole[:n], repErrInvalid)
		}
		p.enter("")
	})
}

// fault 75: commands in the wrong order.
func TestFault75OrderIsKept(t *testing.T) {
	s := serveDevice(t, &mapped{memory: newMemory(mib), unit: mib, units: []Extent{{}}})
	t.Run("a second GO", func(t *testing.T) {
		p := ready(t, s)
		p.say(optionMessage(optGo, infoRequest("")))
		p.gone()
	})
	t.Run("a request in the handshake", func(t *testing.T) {
		p := greeted(t, s)
		p.request(request{command: cmdRead, length: 512})
		p.gone()
	})
	t.Run("contexts before structured replies", func(t *testing.T) {
		p := greeted(t, s)
		p.refused(optSetMetaContext, contextQuery("", contextAllocation), repErrInvalid)
		p.accept(optStructuredReply, nil)
		p.enter("")
		p.request(request{command: cmdBlockStatus, length: 512, cookie: 1})
		if e := p.errorChunk(1); e != errInval {
			t.Errorf("block status without a context: error %d", e)
		}
	})
	t.Run("a selection that fails takes the one before with it", func(t *testing.T) {
		p := greeted(t, s)
		p.accept(optStructuredReply, nil)
		p.accept(optSetMetaContext, contextQuery("", contextAllocation))
		p.refused(optSetMetaContext, contextQuery("none", contextAllocation), repErrUnknown)
		p.enter("")
		p.request(request{command: cmdBlockStatus, length: 512, cookie: 1})
		if e := p.errorChunk(1); e != errInval {
			t.Errorf("block status without a context: error %d", e)
		}
	})
	t.Run("contexts of another export", func(t *testing.T) {
		if err := s.AddExport(Export{Name: "other", Device: &mapped{memory: newMemory(mib), unit: mib, units: []Extent{{}}}}); err != nil {
			t.Fatal(err)
		}
		p := greeted(t, s)
		p.accept(optStructuredReply, nil)
		p.accept(optSetMetaContext, contextQuery("other", contextAllocation))
		p.enter("")
		p.request(request{command: cmdBlockStatus, length: 512, cookie: 1})
		if e := p.errorChunk(1); e != errInval {
			t.Errorf("block status without a context: error %d", e)
		}
	})
	t.Run("flags of structured replies without them", func(t *testing.T) {
		ready(t, s).expect(request{command: cmdRead, flags: cmdFlagDF, length: 512}, errInval)
	})
	t.Run("data where there is none", func(t *testing.T) {
		p := greeted(t, s)
		for _, o := range []option{optList, optStructuredReply} {
			p.refused(o, []byte{0}, repErrInvalid)
		}
		p.refused(optStartTLS, nil, repErrPolicy)
		p.enter("")
	})
}

// fault 85: a name is a key of a table, and leads nowhere else.
func TestFault85NamesAreLookedUpOnly(t *testing.T) {
	s := serve(t, Config{Exports: []Export{{Name: "disk", Device: newMemory(mib)}}})
	for _, name := range []string{
		"", "../disk", "./disk", "/disk", "disk/", "disk\x00", "DISK", "/etc/passwd", "../../etc/passwd",
		"\xff\xfe", "disk\n", "%64isk", strings.Repeat("a/", 2000),
	} {
		p := greeted(t, s)
		p.refused(optGo, infoRequest(name), repErrUnknown)
		p.refused(optInfo, infoRequest(name), repErrUnknown)
		p.accept(optStructuredReply, nil)
		p.refused(optSetMetaContext, contextQuery(name), repErrUnknown)
		p.say(optionMessage(optExportName, []byte(name)))
		p.gone()
	}
	greeted(t, s).enter("disk")
	for _, name := range []string{"a\nb", "\x1b[2J", "\xff", "a\x00", strings.Repeat("x", 4097), "disk"} {
		if err := s.AddExport(Export{Name: name, Device: newMemory(mib)}); err == nil {
			t.Errorf("an export may be called %q", name)
		}
	}
}

func TestListNamesExportsInOrder(t *testing.T) {
	d := newMemory(mib)
	s := serve(t, Config{Exports: []Export{{Name: "b", Device: d, Description: "the second"}, {Name: "a", Device: d}, {Device: d}}})
	if err := s.AddExport(Export{Name: "c", Device: d}); err != nil {
		t.Fatal(err)
	}
	s.RemoveExport("b")
	if err := s.AddExport(Export{Name: "bb", Device: d, Description: "text"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range greeted(t, s).accept(optList, nil) {
		name, rest, ok := cutString(m.data)
		if !ok || m.kind != repServer {
			t.Fatalf("%+v is no export", m)
		}
		got = append(got, name+"="+string(rest))
	}
	if want := []string{"=", "a=", "bb=text", "c="}; !slices.Equal(got, want) {
		t.Errorf("the list is %q, want %q", got, want)
	}
}

func TestInfoTellsAllAboutAnExport(t *testing.T) {
	s := serve(t, Config{Exports: []Export{{
		Name: "x", Description: "a disk", Device: newMemory(3 * mib), MinBlockBytes: 512, PreferredBlockBytes: 64 * kib,
	}}})
	p := greeted(t, s)
	got := map[uint16][]byte{}
	for _, m := range p.accept(optInfo, infoRequest("x", infoName, infoDescription, infoBlockSize, infoName, 77)) {
		got[binary.BigEndian.Uint16(m.data)] = m.data[2:]
	}
	want := map[uint16]string{
		infoExport:      "\x00\x00\x00\x00\x00\x30\x00\x00" + "\x09\x6d",
		infoName:        "x",
		infoDescription: "a disk",
		infoBlockSize:   "\x00\x00\x02\x00" + "\x00\x01\x00\x00" + "\x02\x00\x00\x00",
	}
	for kind, data := range want {
		if string(got[kind]) != data {
			t.Errorf("information %d is %x, want %x", kind, got[kind], data)
		}
	}
	if len(got) != len(want) {
		t.Errorf("information is %v", got)
	}
	p.enter("x")
}

func TestExportNameHasZeroesUnlessNegotiatedAway(t *testing.T) {
	s := serveDevice(t, newMemory(mib))
	for flags, zeroes := range map[byte]int{0: 124, flagFixedNewstyle: 124, flagNoZeroes: 0, flagFixedNewstyle | flagNoZeroes: 0} {
		p := connect(t, s)
		p.take(18)
		p.say([]byte{0, 0, 0, flags}, optionMessage(optExportName, nil))
		b := p.take(10 + zeroes)
		if size := binary.BigEndian.Uint64(b); size != mib {
			t.Errorf("the size is %d", size)
		}
		p.alive()
	}
}

func TestUnknownOptionsAreAnswered(t *testing.T) {
	p := greeted(t, serveDevice(t, newMemory(mib)))
	for _, o := range []option{4, 11, 12, 0xffffffff} {
		p.refused(o, []byte("data"), repErrUnsup)
	}
	p.enter("")
}

func TestAbortIsAnswered(t *testing.T) {
	p := greeted(t, serveDevice(t, newMemory(mib)))
	p.accept(optAbort, []byte("ignored"))
	p.gone()
}

func TestContextsAreListedAndSelected(t *testing.T) {
	d := &mapped{memory: newMemory(mib), unit: mib, units: []Extent{{}}}
	s := serve(t, Config{Exports: []Export{{Name: "full", Device: d, Hydrates: true}, {Name: "map", Device: d}, {Name: "plain", Device: newMemory(1)}}})
	const both = contextAllocation + " " + contextHydrated
	for _, c := range []struct {
		o       option
		export  string
		queries []string
		want    string
	}{
		{optListMetaContext, "full", nil, both},
		{optListMetaContext, "full", []string{"base:"}, contextAllocation},
		{optListMetaContext, "full", []string{"decant:", "x:y", ""}, contextHydrated},
		{optListMetaContext, "full", []string{contextHydrated, contextAllocation}, both},
		{optListMetaContext, "map", nil, contextAllocation},
		{optListMetaContext, "plain", nil, ""},
		{optSetMetaContext, "full", nil, ""},
		{optSetMetaContext, "full", []string{"base:", "decant:"}, ""},
		{optSetMetaContext, "full", []string{contextHydrated, "base:allocation", "qemu:x"}, both},
		{optSetMetaContext, "map", []string{contextHydrated}, ""},
		{optSetMetaContext, "plain", []string{contextAllocation}, ""},
	} {
		p := greeted(t, s)
		p.accept(optStructuredReply, nil)
		var got []string
		for _, m := range p.accept(c.o, contextQuery(c.export, c.queries...)) {
			id, name := binary.BigEndian.Uint32(m.data), string(m.data[4:])
			wantID := map[string]uint32{contextAllocation: allocationID, contextHydrated: hydratedID}[name]
			if c.o == optListMetaContext {
				wantID = 0
			}
			if id != wantID {
				t.Errorf("%s has the number %d", name, id)
			}
			got = append(got, name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("option %d on %s with %q: %q, want %q", c.o, c.export, c.queries, got, c.want)
		}
	}
}
