package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// errSessionLost says that a session ended before a request was answered.
var errSessionLost = errors.New("the connection was lost")

// session is one or several connections to the same export that live and die together.
// If each died for itself, a flush on a new connection could seem to cover a write that
// an old one had acknowledged before the server was restarted.
type session struct {
	client *Client
	export exportInfo
	links  []*link
	next   atomic.Uint32
	gone   chan struct{} // closed when the Client knows that the session has ended
	ended  bool          // the Client knows; under its mu

	mu  sync.Mutex
	why error // why it ended; nil while it lives
}

// newSession connects. Where the server allows several connections, those that it
// refuses are done without.
func (c *Client) newSession(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.DialTime)
	defer cancel()
	stop := context.AfterFunc(c.life, cancel)
	defer stop()
	s := &session{client: c, gone: make(chan struct{})}
	first, export, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	s.export = export
	s.links = append(s.links, newLink(s, first))
	for len(s.links) < c.options.Connections && export.flags&flagCanMultiConn != 0 {
		another, its, err := c.connect(ctx)
		if err != nil {
			break
		}
		if its != export {
			another.stream.Close() //nolint:errcheck // nothing was asked for
			break
		}
		s.links = append(s.links, newLink(s, another))
	}
	var readers sync.WaitGroup
	for _, l := range s.links {
		readers.Go(l.read)
	}
	go func() {
		readers.Wait()
		c.gone(s)
		close(s.gone)
	}()
	return s, nil
}

// fail ends the session. Only the first reason counts.
func (s *session) fail(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != nil {
		return
	}
	s.why = why
	for _, l := range s.links {
		l.stream.Close() //nolint:errcheck // whatever was under way is lost in any case
	}
}

func (s *session) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// leave says good-bye and ends the session.
func (s *session) leave() {
	for _, l := range s.links {
		l.sayGoodbye()
	}
	s.fail(ErrClosed)
	<-s.gone
}

// carryOut sends a request and waits for its answer. sent says whether the server may
// have seen it. Nobody uses the memory of the call any more when it returns.
func (s *session) carryOut(ctx context.Context, r *call) (sent bool, err error) {
	l := s.links[s.next.Add(1)%uint32(len(s.links))]
	var p *pending
	select {
	case p = <-l.free:
	case <-s.gone:
		return false, errSessionLost
	case <-ctx.Done():
		return false, ErrUnreachable
	}
	if sent, err = l.send(p, r); err != nil {
		s.fail(fmt.Errorf("send a request: %w", err))
		err = <-p.done // whoever reads ends, and with it all that is pending
		return sent, err
	}
	timer := time.NewTimer(s.client.options.RequestTime)
	defer timer.Stop()
	select {
	case err = <-p.done:
	case <-timer.C:
		s.fail(fmt.Errorf("no answer within %v", s.client.options.RequestTime))
		err = <-p.done
	case <-ctx.Done():
		s.fail(fmt.Errorf("no answer in time: %w", context.Cause(ctx)))
		err = <-p.done
	}
	l.free <- p
	return true, err
}
