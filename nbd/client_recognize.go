package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// sessionReader reads from one session, before the Client uses it.
type sessionReader struct {
	ctx     context.Context //nolint:containedctx // it lives as long as one call of Options.Recognize
	client  *Client
	session *session
}

// ReadAt is as that of Client; it connects to no other session.
func (r sessionReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.client.within("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	send := func(q *call) error {
		_, err := r.session.carryOut(r.ctx, q)
		return err
	}
	for done := 0; done < len(p); {
		n, err := r.client.readPiece(send, p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

var _ io.ReaderAt = sessionReader{}

// recognize asks the user of the Client whether a new session leads to the same export
// as before.
func (c *Client) recognize(ctx context.Context, s *session) error {
	if c.options.Recognize == nil {
		return nil
	}
	err := c.options.Recognize(sessionReader{ctx, c, s})
	if err == nil {
		return nil
	}
	if errors.Is(err, ErrChanged) {
		err = fmt.Errorf("%v: %w", c.uri, err)
		c.mu.Lock()
		c.lost = err
		c.mu.Unlock()
	}
	s.leave()
	return err
}
