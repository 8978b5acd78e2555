package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// Streams last as long as their data, so they have places of their own, in which
// nobody waits. Each holds some chunks of 64 KiB.
var streamLimits = limits{all: 64, each: 16}

// streamPatience is how long a client may take for one chunk, to send it or to
// take it: who does not move holds no place.
var streamPatience = time.Minute

const (
	chunkBytes = 64 << 10
	// How much of a body that is not wanted is taken all the same, and how long.
	drainBytes    = 8 << 20
	drainPatience = 5 * time.Second
)

func isStream(r *http.Request) bool {
	path := r.URL.EscapedPath()
	return path == client.RouteCipherEncrypt || path == client.RouteCipherDecrypt
}

// transfer makes a handler of work, which reads the request's body from src and
// writes the answer to dst, piece by piece. An error before the first byte of
// the answer is told as everywhere. One behind it breaks the answer off, so that no
// client can take it for whole: a connection that ends, or in HTTP/2 a stream
// that is reset.
func (s *Server) transfer(work func(ctx context.Context, r store.Request, dst io.Writer, src io.Reader) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		request, ok := s.begin(w, r, http.MethodPost)
		switch {
		case !ok:
			return
		case !r.ProtoAtLeast(1, 1):
			s.sendFailure(w, request, secret.Invalid("protocol", "streams need HTTP/1.1 or later: before, an answer that was cut looks whole"))
			return
		case r.Header.Get("Content-Type") != streamMediaType:
			s.sendFailure(w, request, secret.Invalid("Content-Type", "this route takes "+streamMediaType))
			return
		}
		t := &transfer{s: s, w: w, r: r, request: request, control: http.NewResponseController(w), patience: s.streamPatience}
		_ = t.control.EnableFullDuplex() // HTTP/2 is so anyway, and says that it does not know this
		if err := work(r.Context(), request, t, (*incoming)(t)); err != nil {
			t.fail(err)
			return
		}
		t.begin() // the answer may be empty
	}
}

// transfer is a request whose answer leaves while its body comes.
type transfer struct {
	s        *Server
	w        http.ResponseWriter
	r        *http.Request
	request  store.Request
	control  *http.ResponseController
	patience time.Duration

	begun   bool  // a byte of the answer has left
	allowed int   // bytes that may still be read before the present deadline is replaced
	touched bool  // something of the body was asked for
	broken  error // what reading the body came to, if it failed
}

// Write sends a part of the answer.
func (t *transfer) Write(p []byte) (int, error) {
	_ = t.control.SetWriteDeadline(time.Now().Add(t.patience))
	t.begin()
	t.allowed = 0 // time that the client needs to take this is not taken from what it has to send
	return t.w.Write(p)
}

func (t *transfer) begin() {
	if t.begun {
		return
	}
	t.begun = true
	t.s.stamp(t.w, t.request)
	t.w.Header().Set("Content-Type", streamMediaType)
	t.w.Header().Set("Cache-Control", "no-store, no-cache, must-revalidate, private")
	t.w.WriteHeader(http.StatusOK)
}

// incoming is a transfer's body.
type incoming transfer

// Read implements io.Reader. With each chunk it looks whether the caller still is
// who it was.
func (t *incoming) Read(p []byte) (int, error) {
	if t.allowed <= 0 {
		if _, err := identity.PeerID(*t.r.TLS); err != nil {
			return 0, errNoIdentity
		}
		_ = t.control.SetReadDeadline(time.Now().Add(t.patience))
		t.allowed = chunkBytes
	}
	t.touched = true
	n, err := t.r.Body.Read(p)
	t.allowed -= n
	switch {
	case errors.Is(err, io.EOF):
		_ = t.control.SetReadDeadline(time.Time{}) // else it would end what is left to answer
	case err != nil:
		t.broken = err
	}
	return n, err
}

// fail tells the client err, in the way that is still possible.
func (t *transfer) fail(err error) {
	if !t.begun {
		if t.broken != nil {
			err = secret.Invalid("request body", "it could not be read to its end")
		}
		t.s.sendFailure(t.w, t.request, err)
		if t.touched && t.broken == nil {
			// A connection that is closed while the client sends is reset, and the
			// answer may be lost with it: so a little of the rest is taken.
			_ = t.control.Flush()
			_ = t.control.SetReadDeadline(time.Now().Add(min(t.patience, drainPatience)))
			_, _ = io.CopyN(io.Discard, t.r.Body, drainBytes)
		}
		return
	}
	t.s.cfg.Logger.Info("a stream was broken off", "request", t.request.ID, "reason", err)
	if a, ok := t.w.(*observed); ok {
		a.status = 0 // it was no answer
	}
	panic(http.ErrAbortHandler)
}

var chunks = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// pump copies src to dst.
func pump(dst io.Writer, src io.Reader) error {
	buffer := chunks.Get().(*[chunkBytes]byte)
	defer func() {
		clear(buffer[:])
		chunks.Put(buffer)
	}()
	_, err := io.CopyBuffer(dst, src, buffer[:])
	return err
}
