package cluster

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLogger gives the library a logger that ends in slog. The library's debug
// chatter is dropped here, before it is formatted.
func raftLogger(l *slog.Logger) hclog.Logger {
	il := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
	il.RegisterSink(&slogSink{l: l, now: time.Now, said: map[string]*said{}})
	return il
}

// sayAgain is how often the same trouble with the same peer is logged: the
// library tries again several times a second, and says so each time.
const sayAgain = time.Minute

// slogSink is safe for concurrent use.
type slogSink struct {
	l   *slog.Logger
	now func() time.Time

	mu   sync.Mutex // guards the rest
	said map[string]*said
}

type said struct {
	at    time.Time
	since int // not logged since
}

// maxSaid bounds the memory of what was said.
const maxSaid = 256

// repeated tells whether msg is to be left out, as it was logged a moment ago for
// the same peer, and else how often it was left out since.
func (s *slogSink) repeated(msg string, args []any) (out bool, count int) {
	key := ""
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == "peer" || args[i] == "target" {
			key = fmt.Sprint(msg, " ", args[i+1])
		}
	}
	if key == "" {
		return false, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	last := s.said[key]
	if last != nil && now.Sub(last.at) < sayAgain {
		last.since++
		return true, 0
	}
	if last != nil {
		count = last.since
	}
	if len(s.said) >= maxSaid {
		clear(s.said)
	}
	s.said[key] = &said{at: now}
	return false, count
}

func (s *slogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	var to slog.Level
	switch {
	case level >= hclog.Error:
		to = slog.LevelError
	case level == hclog.Warn:
		to = slog.LevelWarn
	case level == hclog.Info:
		to = slog.LevelInfo
	default:
		return
	}
	if !s.l.Enabled(context.Background(), to) {
		return
	}
	if to >= slog.LevelWarn {
		out, count := s.repeated(msg, args)
		if out {
			return
		}
		if count > 0 {
			args = append(args[:len(args):len(args)], "repeated", count)
		}
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			if verb, ok := f[0].(string); ok {
				args[i] = fmt.Sprintf(verb, f[1:]...)
			}
		}
	}
	s.l.Log(context.Background(), to, "raft: "+msg, args...)
}
