package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
)

// The first line says what matters, and each trouble stands below once.
func TestPrintStatus(t *testing.T) {
	t.Parallel()
	const reason = "0 of 2 shares were found"
	peer := func(id string, change func(*client.PeerStatus)) client.PeerStatus {
		p := client.PeerStatus{ID: id, Reachable: true, Voter: true, State: "follower"}
		if change != nil {
			change(&p)
		}
		return p
	}
	sealed := func(p *client.PeerStatus) { p.Sealed, p.Reason = true, reason }
	gone := func(p *client.PeerStatus) { p.Reachable, p.Sealed = false, true }
	whole := client.Status{ClusterID: "c", Leader: "a", Initialised: true}
	for _, c := range []struct {
		name   string
		peers  []client.PeerStatus
		change func(*client.Status)
		first  string
		below  []string
	}{
		{"serving", []client.PeerStatus{peer("a", nil), peer("b", nil)}, nil, "serving", nil},
		{"one sealed", []client.PeerStatus{peer("a", nil), peer("b", sealed)}, nil, "serving, but not b", []string{"sealed: b: " + reason}},
		{"one gone", []client.PeerStatus{peer("a", nil), peer("b", gone)}, nil, "serving, but not b", nil},
		{"all sealed", []client.PeerStatus{peer("a", sealed), peer("b", sealed), peer("c", gone)}, nil,
			"sealed: no peer has its keys", []string{"sealed: a, b: " + reason}},
		{"leader gone", []client.PeerStatus{peer("a", gone), peer("b", nil)}, nil, "about to elect a leader: a does not answer", nil},
		{"no leader", []client.PeerStatus{peer("a", nil)}, func(s *client.Status) { s.Leader = "" }, "without a leader: a majority of the peers must be up", nil},
		{"new", []client.PeerStatus{peer("a", sealed)}, func(s *client.Status) { s.Initialised = false }, "waiting for its root key: run 'spikectl bootstrap'", nil},
		{"audit", []client.PeerStatus{peer("a", func(p *client.PeerStatus) { p.AuditFault = "broken" })}, nil,
			"serving, with a fault in an audit log", []string{"a, audit log: broken"}},
		{"alarm", []client.PeerStatus{peer("a", func(p *client.PeerStatus) {
			p.Alarms = []client.Alarm{{Kind: "disk-stalls", Detail: "look at the disk", Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}
		})}, nil, "serving", []string{"a, alarm disk-stalls since " + shortTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) + ": look at the disk"}},
		{"Keepers", []client.PeerStatus{peer("a", nil)}, func(s *client.Status) {
			s.Keepers = []client.KeeperStatus{{Name: "k1", Health: "empty", Detail: "empty"}, {Name: "k2", Health: "unreachable", Detail: "refused"}}
		}, "serving", []string{"k2: refused"}},
	} {
		s := whole
		s.Peers = c.peers
		if c.change != nil {
			c.change(&s)
		}
		var out bytes.Buffer
		printStatus(&out, s)
		first, rest, _ := strings.Cut(out.String(), "\n")
		if want := "Cluster   c, incarnation 0: " + c.first; first != want {
			t.Errorf("%s: the first line is %q, want %q", c.name, first, want)
		}
		_, tables, _ := strings.Cut(rest, "KEEPER ")
		paragraphs := strings.Split(strings.TrimSpace(tables), "\n\n")[1:]
		if strings.Join(paragraphs, "|") != strings.Join(c.below, "|") {
			t.Errorf("%s: below the tables stands %q, want %q", c.name, paragraphs, c.below)
		}
	}
}
