package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// exportInfo is what a server says of an export.
type exportInfo struct {
	bytes           int64
	flags           uint16
	structured      bool
	allocation      bool // block status can be asked for
	allocationID    uint32
	minBlockBytes   int64
	maxPayloadBytes int64
}

// differs says why an export that was e0 must not be taken for the same one.
func (e exportInfo) differs(e0 exportInfo) string {
	e.allocationID = e0.allocationID // may differ at each connection
	switch {
	case e.bytes != e0.bytes:
		return fmt.Sprintf("it has %d bytes now and had %d", e.bytes, e0.bytes)
	case e != e0:
		return fmt.Sprintf("it can do other things: %+v now, %+v before", e, e0)
	}
	return ""
}

// wire is a connection of a client.
type wire struct {
	stream net.Conn
	in     *bufio.Reader
}

const (
	// maxOptionReplyBytes bounds what a server says to an option.
	maxOptionReplyBytes = 64 << 10
	// maxOptionReplies bounds how many messages one option is answered with.
	maxOptionReplies = 64
)

// optionError is the answer of a server that refuses an option.
type optionError struct {
	option  option
	reply   optionReply
	message string
}

func (e *optionError) Error() string {
	why := map[optionReply]string{
		repErrUnsup:    "it does not know what was asked for",
		repErrPolicy:   "it does not allow that",
		repErrInvalid:  "it calls the request invalid",
		repErrTLSReqd:  "it wants TLS; use nbds://",
		repErrUnknown:  "it has no export of this name",
		repErrShutdown: "it is shutting down",
	}[e.reply]
	if why == "" {
		why = fmt.Sprintf("error %#x", uint32(e.reply))
	}
	if e.message != "" {
		why += fmt.Sprintf(" (%.200q)", e.message)
	}
	return fmt.Sprintf("the server refuses option %d: %s", e.option, why)
}

// connect makes one connection and brings it to the first request.
func (c *Client) connect(ctx context.Context) (_ *wire, info exportInfo, err error) {
	stream, err := c.dial(ctx)
	if err != nil {
		return nil, info, err
	}
	raw := stream
	defer func() {
		if err != nil {
			raw.Close() //nolint:errcheck // nothing was asked for
		}
	}()
	stop := context.AfterFunc(ctx, func() {
		raw.SetDeadline(past) //nolint:errcheck // it fails on a closed stream, which is as good
	})
	defer stop()
	w := &wire{stream: stream, in: bufio.NewReaderSize(stream, readBufferBytes)}
	if info, err = w.negotiate(ctx, c.uri, c.options.TLS); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, info, err
	}
	if !stop() {
		return nil, info, context.Cause(ctx)
	}
	return w, info, w.stream.SetDeadline(time.Time{})
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	if c.options.Dial != nil {
		return c.options.Dial(ctx)
	}
	address := c.uri.Address
	if c.uri.Network == "unix" && !filepath.IsAbs(address) {
		address = "./" + address // a name with @ in front would be no file
	}
	return (&net.Dialer{}).DialContext(ctx, c.uri.Network, address)
}

// negotiate is the client's side of the handshake.
func (w *wire) negotiate(ctx context.Context, u URI, config *tls.Config) (exportInfo, error) {
	info := exportInfo{minBlockBytes: 1, maxPayloadBytes: MaxPayloadBytes}
	flags, err := w.greet()
	if err != nil {
		return info, err
	}
	fixed := flags&flagFixedNewstyle != 0
	if u.TLS {
		if !fixed {
			return info, errors.New("the server cannot do TLS, and the URI asks for it")
		}
		if err := w.startTLS(ctx, config); err != nil {
			return info, err
		}
	}
	if !fixed {
		return info, w.exportName(u.Export, flags, &info)
	}
	info.structured, err = accepted(w.ask(optStructuredReply, nil, nil))
	if err != nil {
		return info, err
	}
	if info.structured {
		if err := w.selectAllocation(u.Export, &info); err != nil {
			return info, err
		}
	}
	known, err := accepted(w.askGo(u.Export, &info))
	if err != nil || known {
		return info, err
	}
	return info, w.exportName(u.Export, flags, &info)
}

// accepted tells a server that does not know an option from one that fails.
func accepted(err error) (bool, error) {
	var refused *optionError
	if errors.As(err, &refused) && refused.reply == repErrUnsup {
		return false, nil
	}
	return err == nil, err
}

// greet exchanges the flags of both sides.
func (w *wire) greet() (flags uint16, err error) {
	var b [18]byte
	if _, err := io.ReadFull(w.in, b[:]); err != nil {
		return 0, fmt.Errorf("wait for the greeting of the server: %w", err)
	}
	if binary.BigEndian.Uint64(b[:]) != magicGreeting || binary.BigEndian.Uint64(b[8:]) != magicOption {
		return 0, fmt.Errorf("%w: it greets with %x, which is not NBD in its new style", ErrProtocol, b[:16])
	}
	flags = binary.BigEndian.Uint16(b[16:]) & (flagFixedNewstyle | flagNoZeroes)
	_, err = w.stream.Write(binary.BigEndian.AppendUint32(nil, uint32(flags)))
	return flags, err
}

func (w *wire) startTLS(ctx context.Context, config *tls.Config) error {
	if err := w.ask(optStartTLS, nil, nil); err != nil {
		return fmt.Errorf("begin TLS, which the URI asks for: %w", err)
	}
	if n := w.in.Buffered(); n > 0 {
		return fmt.Errorf("%w: %d bytes of plain text before TLS", ErrProtocol, n)
	}
	encrypted := tls.Client(w.stream, config)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("begin TLS: %w", err)
	}
	w.stream, w.in = encrypted, bufio.NewReaderSize(encrypted, readBufferBytes)
	return nil
}

// ask sends an option and reads what the server says to it; each is called with every
// message before the last one, which is the error.
func (w *wire) ask(o option, data []byte, each func(optionReply, []byte) error) error {
	if _, err := w.stream.Write(optionMessage(o, data)); err != nil {
		return err
	}
	for range maxOptionReplies {
		r, b, err := w.readOptionReply(o)
		switch {
		case err != nil:
			return err
		case r == repAck:
			return nil
		case r&repError != 0:
			return &optionError{option: o, reply: r, message: string(b)}
		case each == nil:
			return fmt.Errorf("%w: it answers option %d with %d", ErrProtocol, o, r)
		}
		if err := each(r, b); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: it does not come to an end about option %d", ErrProtocol, o)
}

func (w *wire) readOptionReply(o option) (optionReply, []byte, error) {
	var head [optionReplyHeaderBytes]byte
	if _, err := io.ReadFull(w.in, head[:]); err != nil {
		return 0, nil, fmt.Errorf("wait for the answer to option %d: %w", o, err)
	}
	length := binary.BigEndian.Uint32(head[16:])
	if binary.BigEndian.Uint64(head[:]) != magicOptionReply || option(binary.BigEndian.Uint32(head[8:])) != o ||
		length > maxOptionReplyBytes {
		return 0, nil, fmt.Errorf("%w: it answers option %d with %x", ErrProtocol, o, head)
	}
	b := make([]byte, length)
	_, err := io.ReadFull(w.in, b)
	return optionReply(binary.BigEndian.Uint32(head[12:])), b, err
}

// selectAllocation asks for block status. A server without it is as good as one where
// everything is data.
func (w *wire) selectAllocation(export string, info *exportInfo) error {
	data := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	data = append(data, export...)
	data = binary.BigEndian.AppendUint32(data, 1)
	data = binary.BigEndian.AppendUint32(data, uint32(len(contextAllocation)))
	data = append(data, contextAllocation...)
	err := w.ask(optSetMetaContext, data, func(r optionReply, b []byte) error {
		if r != repMetaContext || len(b) < 4 || string(b[4:]) != contextAllocation {
			return fmt.Errorf("%w: it answers with %.100q when block status is selected", ErrProtocol, b)
		}
		info.allocation, info.allocationID = true, binary.BigEndian.Uint32(b)
		return nil
	})
	var refused *optionError
	if errors.As(err, &refused) && refused.reply != repErrShutdown {
		info.allocation = false
		return nil
	}
	return err
}

// askGo ends the handshake, if the server knows how.
func (w *wire) askGo(export string, info *exportInfo) error {
	data := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	data = append(data, export...)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	described := false
	err := w.ask(optGo, data, func(r optionReply, b []byte) error {
		if r != repInfo || len(b) < 2 {
			return fmt.Errorf("%w: it answers with %.100q when an export is chosen", ErrProtocol, b)
		}
		kind, b := binary.BigEndian.Uint16(b), b[2:]
		switch {
		case kind == infoExport && len(b) == 10:
			described = true
			return info.set(binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:]))
		case kind == infoBlockSize && len(b) == 12:
			return info.setBlockSizes(binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[8:]))
		case kind == infoExport || kind == infoBlockSize:
			return fmt.Errorf("%w: information %d of %d bytes", ErrProtocol, kind, len(b))
		}
		return nil
	})
	if err == nil && !described {
		return fmt.Errorf("%w: it does not say how large the export is", ErrProtocol)
	}
	return err
}

func (e *exportInfo) set(bytes uint64, flags uint16) error {
	if int64(bytes) < 0 {
		return fmt.Errorf("%w: an export of %d bytes", ErrProtocol, bytes)
	}
	e.bytes, e.flags = int64(bytes), flags
	return nil
}

func (e *exportInfo) setBlockSizes(least, most uint32) error {
	if least == 0 || least&(least-1) != 0 || least > maxMinBlockBytes || most < least {
		return fmt.Errorf("%w: blocks of at least %d and payloads of at most %d bytes", ErrProtocol, least, most)
	}
	e.minBlockBytes = int64(least)
	e.maxPayloadBytes = min(MaxPayloadBytes, int64(most)&-int64(least))
	return nil
}

// exportName ends the handshake with a server that knows nothing else.
func (w *wire) exportName(export string, flags uint16, info *exportInfo) error {
	if _, err := w.stream.Write(optionMessage(optExportName, []byte(export))); err != nil {
		return err
	}
	b := make([]byte, 10, 134)
	if flags&flagNoZeroes == 0 {
		b = b[:134]
	}
	if _, err := io.ReadFull(w.in, b); err != nil {
		return fmt.Errorf("the server closes the connection when export %q is chosen: %w", export, err)
	}
	return info.set(binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:]))
}

// tlsConfig is what a client uses for TLS; nil where it uses none.
func tlsConfig(u URI, config *tls.Config) (*tls.Config, error) {
	if !u.TLS {
		return nil, nil
	}
	if config == nil {
		config = &tls.Config{}
	}
	config = config.Clone()
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	if u.TLSHostname != "" {
		config.ServerName = u.TLSHostname
	}
	if config.ServerName == "" && u.Network == "tcp" {
		config.ServerName, _, _ = net.SplitHostPort(u.Address) // ParseURI has joined them
	}
	if config.ServerName == "" && !config.InsecureSkipVerify {
		return nil, fmt.Errorf("%v: a socket has no host name to compare with the certificate; add tls-hostname", u)
	}
	if u.TLSCertificates == "" {
		return config, nil
	}
	return config, loadCertificates(config, u.TLSCertificates)
}

func loadCertificates(config *tls.Config, dir string) error {
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return fmt.Errorf("read the authority for TLS: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(ca) {
		return fmt.Errorf("there is no certificate in %s", filepath.Join(dir, "ca-cert.pem"))
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // many servers ask for none
	}
	if err != nil {
		return fmt.Errorf("read the certificate of this client: %w", err)
	}
	config.Certificates = []tls.Certificate{own}
	return nil
}
