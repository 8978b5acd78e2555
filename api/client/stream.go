package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

// stalled is how long a peer that is waited for may not move a byte of a stream.
const stalled = 2 * time.Minute

// EncryptStream encrypts data of any length under the cluster's cipher key, piece
// by piece. The answer is read while plain is; the caller closes it. Another peer
// is tried as long as nothing was read of plain. The answer is whole if it ends
// with io.EOF, else its error is a *secret.Error and what came is worth nothing. A
// cancelled context ends it.
func (c *Client) EncryptStream(ctx context.Context, plain io.Reader) (io.ReadCloser, error) {
	return c.stream(ctx, RouteCipherEncrypt, plain)
}

// DecryptStream decrypts what EncryptStream gave, at any peer. All that is read of
// the answer is authentic, and it is whole if it ends with io.EOF: one that ends
// with another error is a beginning only.
func (c *Client) DecryptStream(ctx context.Context, sealed io.Reader) (io.ReadCloser, error) {
	return c.stream(ctx, RouteCipherDecrypt, sealed)
}

func (c *Client) stream(ctx context.Context, route string, body io.Reader) (io.ReadCloser, error) {
	answer, _, err := c.streamOf(ctx, route, body)
	return answer, err
}

// streamOf is stream with the size of the answer; -1 when the peer does not say it.
func (c *Client) streamOf(ctx context.Context, route string, body io.Reader) (io.ReadCloser, int64, error) {
	patient, cancel := context.WithTimeout(ctx, c.cfg.Patience) // until a peer takes it, and no longer
	defer cancel()
	for try := 0; ; try++ {
		at := (int(c.prefer.Load()) + try) % len(c.peers)
		s := &stream{body: body, peer: c.peers[at]}
		answer, err := s.begin(ctx, c, route)
		if err == nil {
			c.prefer.Store(uint32(at))
			return answer, s.size, nil
		}
		switch secret.CodeOf(err) {
		case secret.CodeSealed, secret.CodeUnavailable, secret.CodeOverloaded:
		default:
			return nil, 0, err
		}
		if s.touched.Load() || ctx.Err() != nil || !pause(patient, try, len(c.peers)) {
			return nil, 0, unavailable(err)
		}
	}
}

// stream is one attempt at one peer.
type stream struct {
	body    io.Reader
	peer    string
	cancel  context.CancelCauseFunc
	stop    func() // ends the watch
	answer  io.ReadCloser
	size    int64        // of the answer; -1: unknown
	touched atomic.Bool  // something was asked of body, so there is no other attempt
	asking  atomic.Int32 // 1 while body is waited for, which is no fault of the peer's
	reading atomic.Int32 // 1 while the peer is waited for
	moved   atomic.Int64 // counts what the peer took and gave
}

var errStalled = errors.New("nothing moved for too long")

func (s *stream) begin(ctx context.Context, c *Client, route string) (io.ReadCloser, error) {
	ctx, s.cancel = context.WithCancelCause(ctx)
	// A peer is asked first (100-continue): what it refuses is not sent.
	patience, body := c.cfg.Attempt, io.ReadCloser(io.NopCloser((*source)(s)))
	if s.body == http.NoBody { // nothing to be asked for: the peer gets its answer ready meanwhile
		patience, body = stalled, http.NoBody
	}
	unanswered := time.AfterFunc(patience, func() { s.cancel(errStalled) })
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got100Continue: func() { unanswered.Stop() }})
	defer unanswered.Stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.peer+route, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/octet-stream")
	if body != http.NoBody {
		request.Header.Set("Expect", "100-continue")
	}
	s.stop = s.watch()
	s.reading.Add(1)
	response, err := c.http.Do(request)
	s.reading.Add(-1)
	if err != nil {
		s.end()
		if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
			err = cause
		}
		return nil, describe(s.peer, err)
	}
	if response.StatusCode != http.StatusOK {
		defer s.end()
		defer response.Body.Close()
		message, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
		if err != nil {
			return nil, describe(s.peer, err)
		}
		return nil, failure(response.StatusCode, message)
	}
	s.answer, s.size = response.Body, response.ContentLength
	return s, nil
}

// watch ends the stream when the peer does not move it, until stop is called.
func (s *stream) watch() (stop func()) {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(stalled)
		defer tick.Stop()
		for before := s.moved.Load(); ; {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			now := s.moved.Load()
			if now == before && s.asking.Load() == 0 && s.reading.Load() > 0 {
				s.cancel(errStalled)
				return
			}
			before = now
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	s.reading.Add(1)
	n, err := s.answer.Read(p)
	s.reading.Add(-1)
	s.moved.Add(int64(n))
	if err != nil && err != io.EOF {
		err = &secret.Error{Code: secret.CodeUnavailable, Cause: err,
			Message: "the stream was broken off: what came is not all. The input is damaged or not of this cluster, or this identity may not go on, or the peer was sealed or stopped"}
	}
	return n, err
}

// Close gives the stream up, if it is not at its end.
func (s *stream) Close() error {
	err := s.answer.Close()
	s.end()
	return err
}

func (s *stream) end() {
	s.stop()
	s.cancel(nil)
}

// source is the request's body.
type source stream

func (s *source) Read(p []byte) (int, error) {
	s.touched.Store(true)
	s.asking.Add(1)
	n, err := s.body.Read(p)
	s.asking.Add(-1)
	s.moved.Add(1)
	return n, err
}
