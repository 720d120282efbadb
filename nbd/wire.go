package nbd

import "encoding/binary"

// All numbers on the wire are big-endian. The names are those of the protocol's text,
// without the prefix NBD_.

// MaxPayloadBytes is the most that one read or write moves, in both directions: what
// the protocol calls portable. The server advertises it and takes no more.
const MaxPayloadBytes = 32 << 20

// maxNameBytes bounds every string of the protocol: names of exports, descriptions,
// messages and queries.
const maxNameBytes = 4096

const (
	magicGreeting    uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption      uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply uint64 = 0x0003e889045565a9
	magicRequest     uint32 = 0x25609513
	magicSimpleReply uint32 = 0x67446698
	magicChunk       uint32 = 0x668e33ef
)

// Flags of the handshake. Those of the client have the same numbers.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags: what an export can do.
const (
	flagHasFlags     uint16 = 1 << 0
	flagReadOnly     uint16 = 1 << 1
	flagFlush        uint16 = 1 << 2
	flagFUA          uint16 = 1 << 3
	flagTrim         uint16 = 1 << 5
	flagWriteZeroes  uint16 = 1 << 6
	flagDF           uint16 = 1 << 7
	flagCanMultiConn uint16 = 1 << 8
	flagFastZero     uint16 = 1 << 11
)

type option uint32

const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMetaContext option = 9
	optSetMetaContext  option = 10
)

type optionReply uint32

const (
	repAck         optionReply = 1
	repServer      optionReply = 2
	repInfo        optionReply = 3
	repMetaContext optionReply = 4

	repError       optionReply = 1 << 31
	repErrUnsup                = repError + 1
	repErrPolicy               = repError + 2
	repErrInvalid              = repError + 3
	repErrTLSReqd              = repError + 5
	repErrUnknown              = repError + 6
	repErrShutdown             = repError + 7
	repErrTooBig               = repError + 9
)

const (
	infoExport      uint16 = 0
	infoName        uint16 = 1
	infoDescription uint16 = 2
	infoBlockSize   uint16 = 3
)

type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisconnect  command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

func (c command) String() string {
	names := [...]string{"read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status"}
	if int(c) < len(names) {
		return names[c]
	}
	return "unknown command"
}

// Flags of a request.
const (
	cmdFlagFUA      uint16 = 1 << 0
	cmdFlagNoHole   uint16 = 1 << 1
	cmdFlagDF       uint16 = 1 << 2
	cmdFlagReqOne   uint16 = 1 << 3
	cmdFlagFastZero uint16 = 1 << 4
)

// Chunks of structured replies.
const (
	chunkFlagDone uint16 = 1 << 0

	chunkNone        uint16 = 0
	chunkOffsetData  uint16 = 1
	chunkOffsetHole  uint16 = 2
	chunkBlockStatus uint16 = 5
	chunkIsError     uint16 = 1 << 15
	chunkError       uint16 = chunkIsError + 1
	chunkErrorOffset uint16 = chunkIsError + 2
)

// Flags of an extent in the context base:allocation.
const (
	stateHole uint32 = 1 << 0
	stateZero uint32 = 1 << 1
)

// stateHydrated is the flag of an extent in the context decant:hydrated.
const stateHydrated uint32 = 1 << 0

const (
	contextAllocation = "base:allocation"
	contextHydrated   = "decant:hydrated"
)

const (
	optionHeaderBytes      = 16
	optionReplyHeaderBytes = 20
	requestBytes           = 28
	simpleReplyBytes       = 16
	chunkHeaderBytes       = 20
)

// request is the fixed part of a request. Its length is what the client says; nobody
// has checked it against anything.
type request struct {
	flags   uint16
	command command
	cookie  uint64
	offset  uint64
	length  uint32
}

// parseRequest reads the first requestBytes of b. It is false if they are no request.
func parseRequest(b []byte) (request, bool) {
	return request{
		flags:   binary.BigEndian.Uint16(b[4:]),
		command: command(binary.BigEndian.Uint16(b[6:])),
		cookie:  binary.BigEndian.Uint64(b[8:]),
		offset:  binary.BigEndian.Uint64(b[16:]),
		length:  binary.BigEndian.Uint32(b[24:]),
	}, binary.BigEndian.Uint32(b) == magicRequest
}

func (r request) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, r.flags)
	b = binary.BigEndian.AppendUint16(b, uint16(r.command))
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	b = binary.BigEndian.AppendUint64(b, r.offset)
	return binary.BigEndian.AppendUint32(b, r.length)
}

// payloadBytes is how much of the client's stream belongs to the request.
func (r request) payloadBytes() int64 {
	if r.command == cmdWrite {
		return int64(r.length)
	}
	return 0
}

func optionMessage(o option, data []byte) []byte {
	b := make([]byte, 0, optionHeaderBytes+len(data))
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func appendOptionReply(b []byte, o option, r optionReply, data ...[]byte) []byte {
	n := 0
	for _, d := range data {
		n += len(d)
	}
	b = binary.BigEndian.AppendUint64(b, magicOptionReply)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(r))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	for _, d := range data {
		b = append(b, d...)
	}
	return b
}

func appendSimpleReply(b []byte, cookie uint64, e errno) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimpleReply)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// chunkHeader begins a chunk of a structured reply.
type chunkHeader struct {
	flags  uint16
	kind   uint16
	cookie uint64
	length uint32
}

func (h chunkHeader) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicChunk)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint16(b, h.kind)
	b = binary.BigEndian.AppendUint64(b, h.cookie)
	return binary.BigEndian.AppendUint32(b, h.length)
}

// parseChunkHeader reads the first chunkHeaderBytes of b, the magic number of which
// the caller has looked at.
func parseChunkHeader(b []byte) chunkHeader {
	return chunkHeader{
		flags:  binary.BigEndian.Uint16(b[4:]),
		kind:   binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		length: binary.BigEndian.Uint32(b[16:]),
	}
}
