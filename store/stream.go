package store

import (
	"context"
	"io"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

// streamAgain is how long a stream goes on before it is decided on again.
const streamAgain = time.Second

// EncryptStream is EncryptWire for data of any length: what is written to the
// writer comes out at dst encrypted, and whole once Close returned nil. The
// decision is recorded before this returns. A stream can last long, so it is
// decided again with each piece when policies moved here, and each second from a
// read-index round: a revocation ends it.
func (s *Store) EncryptStream(ctx context.Context, r Request, dst io.Writer) (io.WriteCloser, error) {
	granted, err := s.grantStream(ctx, r, "cipher.encrypt")
	if err != nil {
		return nil, err
	}
	w, err := s.cfg.Keys.EncryptStream(dst)
	return grantedWriter{granted, w}, err
}

// DecryptStream reverses EncryptStream, on any peer. What the reader gives is
// authentic, and whole if it ends with io.EOF.
func (s *Store) DecryptStream(ctx context.Context, r Request, src io.Reader) (io.Reader, error) {
	granted, err := s.grantStream(ctx, r, "cipher.decrypt")
	if err != nil {
		return nil, err
	}
	reader, err := s.cfg.Keys.DecryptStream(src)
	return grantedReader{granted, reader}, err
}

// grant is a decision that holds for a while. Its owner is one goroutine.
type grant struct {
	s        *Store
	ctx      context.Context
	r        Request
	op       string
	revision uint64 // of the policies that it stands on
	decided  time.Time
}

func (s *Store) grantStream(ctx context.Context, r Request, op string) (*grant, error) {
	bounded, cancel := s.bounded(ctx)
	defer cancel()
	p, err := s.read(bounded, r, op, "", secret.SystemCipher, secret.Execute, nil)
	if err != nil {
		return nil, err
	}
	return &grant{s, ctx, r, op, p.view.PolicyRevision(), s.cfg.Now()}, nil
}

// holds decides again if it is time. What stays allowed is on record already.
func (g *grant) holds() error {
	if err := g.ctx.Err(); err != nil {
		return &secret.Error{Code: secret.CodeUnavailable, Message: "the stream was given up", Cause: err}
	}
	p, err := g.s.current()
	if err != nil {
		return err
	}
	if now := g.s.cfg.Now(); p.view.PolicyRevision() != g.revision || now.Sub(g.decided) >= streamAgain {
		if p, err = g.s.freshWithin(g.ctx); err != nil {
			return err
		}
		if !p.policies.Decide(g.r.Caller, secret.Execute, secret.SystemCipher).Allowed {
			return g.s.deny(g.r, g.op, "", p)
		}
		g.revision, g.decided = p.view.PolicyRevision(), now
	}
	return nil
}

type grantedWriter struct {
	*grant
	io.WriteCloser
}

func (w grantedWriter) Write(p []byte) (int, error) {
	if err := w.holds(); err != nil {
		return 0, err
	}
	return w.WriteCloser.Write(p)
}

func (w grantedWriter) Close() error {
	if err := w.holds(); err != nil {
		return err
	}
	return w.WriteCloser.Close()
}

type grantedReader struct {
	*grant
	io.Reader
}

// Read waits for what the caller sends, and so looks after that whether it may
// still be answered.
func (r grantedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if ended := r.holds(); ended != nil {
		clear(p[:n])
		return 0, ended
	}
	return n, err
}
