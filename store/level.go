package store

import (
	"context"
	"crypto/hmac"
	"encoding/base64"
	"encoding/binary"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

// Level is how new the state has to be that a read is answered from.
type Level uint8

// The levels.
const (
	// Linearizable: everything acknowledged anywhere before the request.
	Linearizable Level = iota
	// AtIndex: at least what Request.Token stands for, policies and data alike,
	// and no more is promised. It asks no other peer, and is refused unless the
	// setting index_reads allows it. An answer in the negative (denied, not
	// found) is linearizable all the same.
	AtIndex
)

// A token is base64url of: format (1 byte), cluster id (16), incarnation (8),
// Raft index (8), MAC over what stands before it (32). It needs no term: within
// one incarnation a committed index never means another entry.
const (
	tokenFormat = 1
	tokenBody   = 1 + 16 + 8 + 8
	tokenSize   = tokenBody + 32
)

// indexWait bounds the wait for this peer to reach a token's index.
const indexWait = 2 * time.Second

// Token makes a token of an answer that stands on the index; on the newest
// publication when that is 0. It is empty while there are no keys.
func (s *Store) Token(index uint64) string {
	p := s.public.Load()
	if p == nil {
		return ""
	}
	if index == 0 {
		index = p.view.Index()
	}
	id, incarnation := s.cluster(p)
	b := make([]byte, 0, tokenSize)
	b = append(append(b, tokenFormat), id...)
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, incarnation), index)
	if len(b) != tokenBody {
		return ""
	}
	mac, err := s.tokenMAC(b)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(append(b, mac...))
}

// cluster is whose tokens are good. After the loss of a majority the cluster
// may have lost entries that tokens stand for, and has another incarnation; the
// replicated state has not heard of that.
func (s *Store) cluster(p *published) (id []byte, incarnation uint64) {
	id, incarnation = p.view.Cluster()
	if s.cfg.Incarnation != nil {
		incarnation = s.cfg.Incarnation()
	}
	return id, incarnation
}

func (s *Store) tokenMAC(body []byte) ([]byte, error) {
	return s.cfg.Keys.Fingerprint([]byte("index token"), body)
}

// openToken returns the index of a token that this cluster made in this
// incarnation.
func (s *Store) openToken(p *published, token string) (index uint64, err error) {
	if len(token) != base64.RawURLEncoding.EncodedLen(tokenSize) {
		return 0, errToken()
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return 0, errToken()
	}
	mac, err := s.tokenMAC(b[:tokenBody])
	if err != nil {
		return 0, err
	}
	id, incarnation := s.cluster(p)
	if !hmac.Equal(mac, b[tokenBody:]) || b[0] != tokenFormat || string(b[1:17]) != string(id) ||
		binary.BigEndian.Uint64(b[17:]) != incarnation {
		return 0, errToken()
	}
	return binary.BigEndian.Uint64(b[25:]), nil
}

func errToken() error {
	return secret.Errorf(secret.CodeForeignToken, "the index token is not one of this cluster as it is now; drop it and read without")
}

// view is the publication that r is to be answered from. fresh says that it
// comes from a read-index round, so that it may be answered in the negative.
func (s *Store) view(ctx context.Context, r Request) (p *published, fresh bool, err error) {
	if r.Level != AtIndex {
		p, err = s.fresh(ctx)
		return p, true, err
	}
	if p, err = s.current(); err != nil {
		return nil, false, err
	}
	index, err := s.openToken(p, r.Token)
	if err != nil {
		return nil, false, err
	}
	if p, err = s.reach(ctx, index); err != nil {
		return nil, false, err
	}
	if p.view.Settings().IndexReads {
		return p, false, nil
	}
	// As this peer knows: it may be behind.
	if p, err = s.fresh(ctx); err != nil {
		return nil, false, err
	}
	if !p.view.Settings().IndexReads {
		e := secret.Invalid("Spike-Consistency", "this cluster does not allow reads of level index; its setting index_reads is off")
		e.Reason = "index_reads_off"
		return nil, false, e
	}
	return p, true, nil
}

// reach waits until the index is published here.
func (s *Store) reach(ctx context.Context, index uint64) (*published, error) {
	ctx, cancel := context.WithTimeout(ctx, indexWait)
	defer cancel()
	for {
		if p, err := s.current(); err != nil || p.view.Index() >= index {
			return p, err
		}
		moved := s.moved.next()
		if p, err := s.current(); err != nil || p.view.Index() >= index {
			return p, err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, secret.Errorf(secret.CodeUnavailable, "this peer has not caught up with the index token; ask another one, or again")
		}
	}
}

// signal tells any number of waiters that something moved.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // closed by the next fire; nil while nobody waits
}

func (g *signal) next() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch == nil {
		g.ch = make(chan struct{})
	}
	return g.ch
}

func (g *signal) fire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch != nil {
		close(g.ch)
		g.ch = nil
	}
}
