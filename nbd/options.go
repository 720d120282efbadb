package nbd

import (
	"encoding/binary"
	"slices"
)

// contexts are the metadata contexts that a client has selected.
type contexts struct {
	allocation, hydrated bool
}

// Numbers of the contexts, of which the client is told with their names.
const (
	allocationID uint32 = 1
	hydratedID   uint32 = 2
)

// cutString takes a string with its 32-bit length in front from b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) || n > maxNameBytes {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}

// parseInfoRequest reads the data of INFO and GO: a name, and what the client wants to
// know.
func parseInfoRequest(data []byte) (name string, wanted []uint16, ok bool) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(rest))
	if rest = rest[2:]; len(rest) != 2*n {
		return "", nil, false
	}
	for ; len(rest) > 0; rest = rest[2:] {
		// Each may be asked for once; a client that repeats itself gets one answer.
		if kind := binary.BigEndian.Uint16(rest); !slices.Contains(wanted, kind) && len(wanted) < 16 {
			wanted = append(wanted, kind)
		}
	}
	return name, wanted, true
}

// parseContextQuery reads the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func parseContextQuery(data []byte) (name string, queries []string, ok bool) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(rest)
	for rest = rest[4:]; n > 0; n-- {
		var query string
		if query, rest, ok = cutString(rest); !ok {
			return "", nil, false
		}
		queries = append(queries, query)
	}
	return name, queries, len(rest) == 0
}

// offers are the contexts that exist for the export.
func (e *export) offers() contexts {
	_, mapped := e.Device.(Mapped)
	return contexts{allocation: mapped, hydrated: mapped && e.Hydrates}
}

// metaContext lists or selects contexts. A selection replaces the one before, also if
// it fails.
func (n *negotiation) metaContext(o option, data []byte) error {
	selecting := o == optSetMetaContext
	if selecting {
		n.contexts, n.contextsOf = contexts{}, ""
	}
	name, queries, ok := parseContextQuery(data)
	if !ok || !n.structured {
		return n.reply(o, repErrInvalid)
	}
	e, ok := n.server.lookup(name)
	if !ok {
		return n.reply(o, repErrUnknown)
	}
	offers := e.offers()
	asked := func(context, wildcard string) bool {
		if selecting {
			return slices.Contains(queries, context)
		}
		return len(queries) == 0 || slices.Contains(queries, context) || slices.Contains(queries, wildcard)
	}
	found := contexts{
		allocation: offers.allocation && asked(contextAllocation, "base:"),
		hydrated:   offers.hydrated && asked(contextHydrated, "decant:"),
	}
	add := func(id uint32, context string) {
		if !selecting {
			id = 0 // reserved in a list
		}
		n.add(o, repMetaContext, binary.BigEndian.AppendUint32(nil, id), []byte(context))
	}
	if found.allocation {
		add(allocationID, contextAllocation)
	}
	if found.hydrated {
		add(hydratedID, contextHydrated)
	}
	if selecting {
		n.contexts, n.contextsOf = found, name
	}
	return n.reply(o, repAck)
}
