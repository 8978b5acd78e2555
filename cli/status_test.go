package cli

import (
	"bytes"
	"fmt"
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
		{"removed", []client.PeerStatus{peer("a", nil), peer("b", func(p *client.PeerStatus) { p.State = "removed" })}, func(s *client.Status) { s.AskedPeer, s.Leader = "b", "" },
			"b was removed from the cluster: stop it, or ask another", nil},
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

// All that there is to say of five peers fits a page of 100 columns.
func TestPrintStatusPage(t *testing.T) {
	t.Parallel()
	s := client.Status{ClusterID: "0123456789abcdef0123456789abcdef", Incarnation: 1, Leader: "nexus-1", Term: 1234, Level: 2, Initialised: true, Threshold: 2, Tolerance: 1,
		Secrets: 100000, Policies: 1, StateBytes: 300 << 20, StateLimit: 1 << 30,
		Keepers: []client.KeeperStatus{{Name: "keeper-1", Index: 1, Health: "good"}, {Name: "keeper-2", Index: 2, Health: "good"}, {Name: "keeper-3", Index: 3, Health: "unreachable"}}}
	expiry := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range s.Keepers[:2] {
		s.Keepers[i].ShareSet, s.Keepers[i].LastContact = "89abcdef89abcdef89abcdef89abcdef", &expiry
	}
	s.Alarms = []client.Alarm{{Kind: "keepers-few", Detail: "2 of 3 Keepers are good and 2 are needed", Since: expiry}}
	for i, p := range []client.PeerStatus{
		{State: "leader"},
		{State: "follower", Draining: true, Lag: 12345, LastContact: 12.34},
		{State: "follower", Sealed: true, Reason: "0 of 2 shares were found", LastContact: 0.1},
		{State: "candidate", LastContact: -1, Alarms: []client.Alarm{{Kind: "disk-stalls", Detail: "look at the disk", Since: expiry}}, Version: "v1.3.0"},
	} {
		p.ID, p.Address, p.Voter, p.Reachable, p.Term, p.AuditCount, p.SVIDExpiry = fmt.Sprint("nexus-", i+1), fmt.Sprintf("10.20.30.4%d:8555", i), i != 2, true, 1234, 123456, expiry
		if p.Version == "" {
			p.Version = "v1.2.0"
		}
		s.Peers = append(s.Peers, p)
	}
	s.Peers = append(s.Peers, client.PeerStatus{ID: "nexus-5", Address: "10.20.30.44:8555", Voter: true, Sealed: true})
	var out bytes.Buffer
	printStatus(&out, s)
	const want = `Cluster   0123456789abcdef0123456789abcdef, incarnation 1: serving, but not nexus-2, nexus-3, nexus-5
Leader    nexus-1, term 1234; can lose 1 more peer
State     100000 secrets, 1 policy, 300.0 MiB of 1.0 GiB
Keepers   2 of 3 good, threshold 2
ALARM     since 2026-01-02 03:04:05Z: 2 of 3 Keepers are good and 2 are needed
Version   v1.2.0 (nexus-1, nexus-2, nexus-3), v1.3.0 (nexus-4); format level 2

PEER     STATE               SEALED  TERM  LAG           AUDIT   ALARM  SVID UNTIL  ADDRESS
nexus-1  leader              no      1234  0             123456  -      03:04:05Z   10.20.30.40:8555
nexus-2  follower, draining  no      1234  12345, 12.3s  123456  -      03:04:05Z   10.20.30.41:8555
nexus-3  learner             yes     1234  0             123456  -      03:04:05Z   10.20.30.42:8555
nexus-4  candidate           no      1234  0, never      123456  1      03:04:05Z   10.20.30.43:8555
nexus-5  unreachable         -       -     -             -       -      -           10.20.30.44:8555

KEEPER    SHARE  SET       STATE        LAST CONTACT
keeper-1  1      89abcdef  good         2026-01-02 03:04:05Z
keeper-2  2      89abcdef  good         2026-01-02 03:04:05Z
keeper-3  3      -         unreachable  never

sealed: nexus-3: 0 of 2 shares were found

nexus-4, alarm disk-stalls since 2026-01-02 03:04:05Z: look at the disk
`
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
	_, tables, _ := strings.Cut(out.String(), "\n\n") // prose may break anywhere
	for line := range strings.Lines(tables) {
		if len(line) > 101 {
			t.Errorf("%d columns: %s", len(line)-1, line)
		}
	}
}
