package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// readBufferBytes is how much of a client's stream is read at once.
const readBufferBytes = 64 << 10

const (
	// maxOptionBytes is the longest data of an option that is looked at: two names
	// and some queries.
	maxOptionBytes = 32 << 10
	// maxSkippedBytes is the longest that is read only to be refused; a client that
	// announces more is disconnected.
	maxSkippedBytes = 1 << 20
)

// Reasons to end a handshake.
var (
	errProtocol = errors.New("the peer does not keep to the protocol")
	errLeft     = errors.New("the client has left")
	errRefused  = errors.New("the client got what it asked for refused")
)

// past is a deadline that has gone by.
var past = time.Unix(1, 0)

// negotiation is the handshake with one client: a state machine that ends in a
// connection, or in an error. Nothing of it outlives STARTTLS but the flags of the
// client.
type negotiation struct {
	server *Server
	stream net.Conn
	in     *bufio.Reader
	out    []byte

	fixed, noZeroes bool
	encrypted       bool
	structured      bool
	contexts        contexts
	contextsOf      string // the export for which contexts were selected
}

// handshake brings a client to the first request. The client counts in the gate when a
// connection is returned.
func (s *Server) handshake(ctx context.Context, stream net.Conn) (*conn, error) {
	if err := stream.SetDeadline(time.Now().Add(s.config.Limits.HandshakeTime)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		stream.SetDeadline(past) //nolint:errcheck // it fails on a closed stream, which is as good
	})
	defer stop()
	n := &negotiation{server: s, stream: stream, in: bufio.NewReaderSize(stream, readBufferBytes)}
	c, err := n.run()
	if err != nil {
		return nil, err
	}
	if err := c.stream.SetDeadline(time.Time{}); err != nil {
		s.gate.end()
		return nil, err
	}
	return c, nil
}

// run greets, and answers options until one of them ends the handshake.
func (n *negotiation) run() (*conn, error) {
	greeting := binary.BigEndian.AppendUint64(nil, magicGreeting)
	greeting = binary.BigEndian.AppendUint64(greeting, magicOption)
	greeting = binary.BigEndian.AppendUint16(greeting, flagFixedNewstyle|flagNoZeroes)
	if _, err := n.stream.Write(greeting); err != nil {
		return nil, err
	}
	var flags [4]byte
	if _, err := io.ReadFull(n.in, flags[:]); err != nil {
		return nil, err
	}
	f := binary.BigEndian.Uint32(flags[:])
	if f&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return nil, fmt.Errorf("%w: unknown flags %#x", errProtocol, f)
	}
	n.fixed, n.noZeroes = f&flagFixedNewstyle != 0, f&flagNoZeroes != 0
	for {
		o, data, err := n.readOption()
		if err != nil {
			return nil, err
		}
		c, err := n.answer(o, data)
		if c != nil || err != nil {
			return c, err
		}
	}
}

// readOption reads one option. Data that is too long is skipped, and answered; data is
// nil then.
func (n *negotiation) readOption() (option, []byte, error) {
	for {
		var head [optionHeaderBytes]byte
		if _, err := io.ReadFull(n.in, head[:]); err != nil {
			return 0, nil, err
		}
		o, length := option(binary.BigEndian.Uint32(head[8:])), binary.BigEndian.Uint32(head[12:])
		switch {
		case binary.BigEndian.Uint64(head[:]) != magicOption:
			return 0, nil, fmt.Errorf("%w: an option begins with %x", errProtocol, head[:8])
		case !n.fixed && o != optExportName:
			return 0, nil, fmt.Errorf("%w: option %d without fixed newstyle", errProtocol, o)
		case length <= maxOptionBytes:
			data := make([]byte, length)
			_, err := io.ReadFull(n.in, data)
			return o, data, err
		case length > maxSkippedBytes || o == optExportName:
			return 0, nil, fmt.Errorf("%w: option %d with %d bytes of data", errProtocol, o, length)
		}
		if _, err := io.CopyN(io.Discard, n.in, int64(length)); err != nil {
			return 0, nil, err
		}
		if err := n.reply(o, n.tooBig(o)); err != nil {
			return 0, nil, err
		}
	}
}

func (n *negotiation) tooBig(o option) optionReply {
	if n.needsTLS(o) {
		return repErrTLSReqd
	}
	return repErrTooBig
}

// needsTLS says whether the option is refused until the client has begun TLS.
func (n *negotiation) needsTLS(o option) bool {
	return n.server.config.RequireTLS && !n.encrypted && o != optStartTLS && o != optAbort
}

// answer carries one option out. It returns a connection if the handshake ends with
// it, and an error if the client has to go.
func (n *negotiation) answer(o option, data []byte) (*conn, error) {
	if n.needsTLS(o) {
		if o == optExportName {
			return nil, fmt.Errorf("%w: TLS is required", errRefused) // this option has no reply
		}
		return nil, n.reply(o, repErrTLSReqd)
	}
	switch o {
	case optExportName:
		return n.exportName(data)
	case optGo, optInfo:
		return n.goOrInfo(o, data)
	case optAbort:
		n.reply(o, repAck) //nolint:errcheck // it may have left without waiting for it
		return nil, errLeft
	case optList:
		return nil, n.list(data)
	case optStartTLS:
		return nil, n.startTLS(data)
	case optStructuredReply:
		if len(data) > 0 {
			return nil, n.reply(o, repErrInvalid)
		}
		n.structured = true
		return nil, n.reply(o, repAck)
	case optListMetaContext, optSetMetaContext:
		return nil, n.metaContext(o, data)
	default:
		return nil, n.reply(o, repErrUnsup)
	}
}

// add puts a reply behind those that are to be sent with the next one.
func (n *negotiation) add(o option, r optionReply, data ...[]byte) {
	n.out = appendOptionReply(n.out, o, r, data...)
}

// reply sends everything that was added, and r.
func (n *negotiation) reply(o option, r optionReply) error {
	n.add(o, r)
	_, err := n.stream.Write(n.out)
	n.out = n.out[:0]
	return err
}

// startTLS makes everything that follows go through TLS. What the client said before
// was not protected, so nothing of it stays: neither what was negotiated, nor bytes
// that came along with the option. An honest client waits for the reply.
func (n *negotiation) startTLS(data []byte) error {
	switch {
	case n.encrypted || len(data) > 0:
		return n.reply(optStartTLS, repErrInvalid)
	case n.server.config.TLS == nil:
		return n.reply(optStartTLS, repErrPolicy)
	case n.in.Buffered() > 0:
		return fmt.Errorf("%w: %d bytes of plain text behind STARTTLS", errProtocol, n.in.Buffered())
	}
	if err := n.reply(optStartTLS, repAck); err != nil {
		return err
	}
	encrypted := tls.Server(n.stream, n.server.config.TLS)
	if err := encrypted.Handshake(); err != nil { //nolint:noctx // the deadline and the end of the server are on the stream
		return fmt.Errorf("begin TLS: %w", err)
	}
	n.stream, n.in = encrypted, bufio.NewReaderSize(encrypted, readBufferBytes)
	n.encrypted, n.structured = true, false
	n.contexts, n.contextsOf = contexts{}, ""
	return nil
}

// list names every export.
func (n *negotiation) list(data []byte) error {
	if len(data) > 0 {
		return n.reply(optList, repErrInvalid)
	}
	for _, e := range n.server.list() {
		length := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		n.add(optList, repServer, length, []byte(e.Name), []byte(e.Description))
	}
	return n.reply(optList, repAck)
}

// goOrInfo tells about an export, and for GO ends the handshake with it.
func (n *negotiation) goOrInfo(o option, data []byte) (*conn, error) {
	name, wanted, ok := parseInfoRequest(data)
	if !ok {
		return nil, n.reply(o, repErrInvalid)
	}
	e, ok := n.server.lookup(name)
	if !ok {
		return nil, n.reply(o, repErrUnknown)
	}
	c := n.connection(e)
	if o == optGo && !n.server.gate.begin() {
		return nil, n.reply(o, repErrShutdown)
	}
	info := func(kind uint16, payload []byte) {
		n.add(o, repInfo, binary.BigEndian.AppendUint16(nil, kind), payload)
	}
	info(infoExport, c.appendExportInfo(nil))
	info(infoBlockSize, e.appendBlockSizes(nil))
	for _, kind := range wanted {
		switch {
		case kind == infoName:
			info(infoName, []byte(e.Name))
		case kind == infoDescription && e.Description != "":
			info(infoDescription, []byte(e.Description))
		}
	}
	err := n.reply(o, repAck)
	if o == optInfo {
		return nil, err
	}
	if err != nil {
		n.server.gate.end()
		return nil, err
	}
	return c, nil
}

// exportName is GO as it was before there were errors.
func (n *negotiation) exportName(data []byte) (*conn, error) {
	e, ok := n.server.lookup(string(data))
	if !ok {
		return nil, fmt.Errorf("%w: there is no export %.100q", errRefused, data)
	}
	if !n.server.gate.begin() {
		return nil, fmt.Errorf("%w: the server stops", errRefused)
	}
	c := n.connection(e)
	out := c.appendExportInfo(nil)
	if !n.noZeroes {
		out = append(out, make([]byte, 124)...)
	}
	if _, err := n.stream.Write(out); err != nil {
		n.server.gate.end()
		return nil, err
	}
	return c, nil
}

// connection is what the client gets if the handshake ends here.
func (n *negotiation) connection(e *export) *conn {
	c := &conn{
		server:     n.server,
		export:     e,
		stream:     n.stream,
		in:         n.in,
		structured: n.structured,
		bytes:      e.Device.Bytes(),
		readOnly:   e.ReadOnly,
	}
	if d, ok := e.Device.(Locked); ok && d.ReadOnly() {
		c.readOnly = true
	}
	if n.contextsOf == e.Name {
		c.contexts = n.contexts
	}
	return c
}

// appendExportInfo adds size and transmission flags.
func (c *conn) appendExportInfo(b []byte) []byte {
	// A flush covers what was written through any connection, because there is one
	// device behind them and no cache in between: so several connections are safe.
	flags := flagHasFlags | flagFlush | flagFUA | flagCanMultiConn
	if c.readOnly {
		flags |= flagReadOnly
	} else {
		flags |= flagTrim | flagWriteZeroes | flagFastZero
	}
	if c.structured {
		flags |= flagDF
	}
	b = binary.BigEndian.AppendUint64(b, uint64(c.bytes))
	return binary.BigEndian.AppendUint16(b, flags)
}

func (e *export) appendBlockSizes(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(e.MinBlockBytes))
	b = binary.BigEndian.AppendUint32(b, uint32(e.PreferredBlockBytes))
	return binary.BigEndian.AppendUint32(b, MaxPayloadBytes)
}
