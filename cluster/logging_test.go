package cluster

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// A peer that is down is said once a minute and with a count, not each time that
// it is tried; another peer, another trouble and news are said at once.
func TestRaftLoggerRepeatsLittle(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	now := time.Unix(0, 0)
	sink := &slogSink{l: slog.New(slog.NewTextHandler(&out, nil)), now: func() time.Time { return now }, said: map[string]*said{}}
	down := errors.New("down")
	lines := func(want ...string) {
		t.Helper()
		got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		out.Reset()
		if len(got) != len(want) {
			t.Fatalf("%d lines, not %d: %q", len(got), len(want), got)
		}
		for i, w := range want {
			if !strings.Contains(got[i], w) {
				t.Errorf("%q lacks %q", got[i], w)
			}
		}
	}
	for range 5 {
		sink.Accept("", hclog.Error, "failed to heartbeat to", "peer", raft.ServerAddress("a:1"), "error", down)
	}
	sink.Accept("", hclog.Error, "failed to heartbeat to", "peer", raft.ServerAddress("b:1"), "error", down)
	sink.Accept("", hclog.Error, "failed to make requestVote RPC", "target", raft.Server{ID: "a", Address: "a:1"}, "error", down)
	lines("peer=a:1", "peer=b:1", "requestVote")
	for range 2 {
		sink.Accept("", hclog.Info, "pipelining replication", "peer", raft.Server{ID: "a"})
		sink.Accept("", hclog.Warn, "Election timeout reached, restarting election")
	}
	lines("pipelining", "Election", "pipelining", "Election")
	now = now.Add(sayAgain)
	for range 2 {
		sink.Accept("", hclog.Error, "failed to heartbeat to", "peer", raft.ServerAddress("a:1"), "error", down)
	}
	lines("repeated=4")
}
