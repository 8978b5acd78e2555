package cli

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
)

func statusCommand() *cli.Command {
	return &cli.Command{Name: "status", Usage: "show the whole cluster at a glance", Flags: []cli.Flag{
		&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "look again and again, until interrupted; with --format json each look is one line"},
		&cli.DurationFlag{Name: "interval", Value: 2 * time.Second, Usage: "`DURATION` between two looks of --watch"},
	}, Action: func(c *cli.Context) error {
		if c.Bool("watch") {
			return over(connectForever, watchStatus)(c)
		}
		return with(showStatus)(c)
	}}
}

func showStatus(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	if c.IsSet("interval") {
		return usage("--interval goes with --watch")
	}
	if !c.IsSet("timeout") { // who asks wonders what is wrong, and does not want to wait for it
		if err := c.Set("timeout", statusPatience); err != nil {
			return err
		}
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	status, err := cl.Status(ctx)
	if err != nil {
		return err
	}
	return show(c, status, func(w io.Writer) { printStatus(w, status) })
}

// statusPatience is enough to find the one peer of several that answers.
const statusPatience = "10s"

// clusterState is the cluster in a few words.
func clusterState(s client.Status) string {
	var idle []string // these do not serve
	for _, p := range s.Peers {
		if p.Sealed || !p.Reachable || p.Draining {
			idle = append(idle, p.ID)
		}
	}
	removed := func(p client.PeerStatus) bool { return p.ID == s.AskedPeer && p.State == "removed" }
	switch {
	case slices.ContainsFunc(s.Peers, removed):
		return s.AskedPeer + " was removed from the cluster: stop it, or ask another"
	case s.ClusterID == "":
		return "being formed: all peers must be up for that"
	case !s.Initialised:
		return "waiting for its root key: run 'spikectl bootstrap'"
	case s.Sealed:
		return "sealed by an operator"
	case s.Leader == "":
		return "without a leader: a majority of the peers must be up"
	case !leaderAnswers(s):
		return "about to elect a leader: " + s.Leader + " does not answer"
	case len(idle) == len(s.Peers):
		return "sealed: no peer has its keys"
	case len(idle) > 0:
		return "serving, but not " + strings.Join(idle, ", ")
	case slices.ContainsFunc(s.Peers, func(p client.PeerStatus) bool { return p.AuditFault != "" }):
		return "serving, with a fault in an audit log"
	}
	return "serving"
}

// archiveText says what would be lost if all peers were, now; "" without an archive.
func archiveText(peers []client.PeerStatus) (text string) {
	for _, p := range peers {
		switch a := p.Archive; {
		case a == nil:
		case !a.Active:
			if text == "" {
				text = "nobody ships into it now: that takes a leader with its keys"
			}
		default:
			text = "has everything"
			if a.BehindSeconds > 0 {
				text = fmt.Sprintf("lacks the last %.1f s", a.BehindSeconds)
			}
			if a.Snapshot > 0 {
				text += ", newest snapshot " + shortTime(a.SnapshotTime)
			}
			if a.Error != "" {
				text += "; FAILING: " + a.Error
			}
			return text
		}
	}
	return text
}

// auditArchiveText says which peers' closed audit files are not in the archive.
func auditArchiveText(peers []client.PeerStatus) (text string) {
	for _, p := range peers {
		if p.Archive == nil || p.Archive.Audit == nil {
			continue
		}
		a := p.Archive.Audit
		if a.Waiting > 0 {
			text += fmt.Sprintf("; %s of %s not archived", count(a.Waiting, "audit file"), p.ID)
		}
		if a.Error != "" {
			text += fmt.Sprintf("; AUDIT OF %s FAILING: %s", p.ID, a.Error)
		}
	}
	return text
}

// drillText says when the archive was proven last.
func drillText(s client.Status) string {
	text := ", never verified"
	if s.Verified != nil {
		text = ", last verified snapshot " + shortTime(s.Verified.Time)
	}
	if s.Drill != nil && !s.Drill.OK {
		text += "; LAST DRILL FAILED: " + s.Drill.Reason
	}
	for _, p := range s.Peers {
		if p.Archive != nil && p.Archive.Pruned != nil && p.Archive.Pruned.Forbidden {
			text += "; the store lets the peers delete nothing, so retention is somebody else's"
		}
	}
	return text
}

func printStatus(w io.Writer, s client.Status) {
	fmt.Fprintf(w, "Cluster   %s, incarnation %d: %s\n", orDash(s.ClusterID), s.Incarnation, clusterState(s))
	fmt.Fprintf(w, "Leader    %s, term %d; can lose %s\n", orDash(s.Leader), s.Term, count(s.Tolerance, "more peer"))
	fmt.Fprintf(w, "State     %s, %s, %s of %s\n", count(s.Secrets, "secret"), countAs(s.Policies, "policy", "policies"), bytesText(s.StateBytes), bytesText(s.StateLimit))
	fmt.Fprintf(w, "Keepers   %s, threshold %d\n", goodOf(s.Keepers), s.Threshold)
	if text := archiveText(s.Peers); text != "" {
		text += drillText(s) + auditArchiveText(s.Peers)
		fmt.Fprintf(w, "Archive   %s\n", text)
	}
	for _, a := range s.Alarms {
		fmt.Fprintf(w, "ALARM     since %s: %s\n", shortTime(a.Since), a.Detail)
	}
	fmt.Fprintf(w, "Version   %s; format level %d\n\n", versions(s.Peers), s.Level)

	rows := [][]string{{"PEER", "STATE", "SEALED", "TERM", "LAG", "AUDIT", "ALARM", "SVID UNTIL", "ADDRESS"}}
	for _, p := range s.Peers {
		if !p.Reachable {
			rows = append(rows, []string{p.ID, "unreachable", "-", "-", "-", "-", "-", "-", p.Address})
			continue
		}
		state, auditState := stateText(p.State, p.Draining), strconv.FormatUint(p.AuditCount, 10)
		if !p.Voter {
			state = stateText("learner", p.Draining)
			if p.State != "follower" {
				state = p.State + " (learner)"
			}
		}
		if p.AuditFault != "" {
			auditState = "FAULT"
		}
		rows = append(rows, []string{p.ID, state, yesNo(p.Sealed), strconv.FormatUint(p.Term, 10), lagText(p), auditState, alarmsText(p), until(p.SVIDExpiry), p.Address})
	}
	table(w, rows...)
	fmt.Fprintln(w)
	rows = [][]string{{"KEEPER", "SHARE", "SET", "STATE", "LAST CONTACT"}}
	for _, k := range s.Keepers {
		rows = append(rows, keeperRow(k))
	}
	table(w, rows...)
	printTroubles(w, s)
}

// silent is how long a follower may not have heard its leader before that is worth
// a word: a heartbeat, unless they are set otherwise.
const silent = 0.5

// lagText is how far p is behind the leader, and for how long it has not heard it.
func lagText(p client.PeerStatus) string {
	text := strconv.FormatUint(p.Lag, 10)
	switch {
	case p.LastContact < 0:
		return text + ", never"
	case p.LastContact > silent:
		return fmt.Sprintf("%s, %.1fs", text, p.LastContact)
	}
	return text
}

func alarmsText(p client.PeerStatus) string {
	if len(p.Alarms) == 0 {
		return "-"
	}
	return strconv.Itoa(len(p.Alarms)) // they stand below
}

// versions names the releases of the peers that answer: one, or who has which.
func versions(peers []client.PeerStatus) string {
	var list []string
	who := map[string][]string{}
	for _, p := range peers {
		if !p.Reachable {
			continue
		}
		if who[p.Version] == nil {
			list = append(list, p.Version)
		}
		who[p.Version] = append(who[p.Version], p.ID)
	}
	if len(list) > 1 {
		for i, v := range list {
			list[i] = v + " (" + strings.Join(who[v], ", ") + ")"
		}
	}
	return orDash(strings.Join(list, ", "))
}

func stateText(state string, draining bool) string {
	if draining {
		return state + ", draining"
	}
	return state
}

// printTroubles says what is wrong, each thing once.
func printTroubles(w io.Writer, s client.Status) {
	var reasons []string
	peers := map[string][]string{}
	for _, p := range s.Peers {
		if p.Reachable && p.Sealed && p.Reason != "" && s.Initialised {
			if peers[p.Reason] == nil {
				reasons = append(reasons, p.Reason)
			}
			peers[p.Reason] = append(peers[p.Reason], p.ID)
		}
	}
	for _, reason := range reasons {
		fmt.Fprintf(w, "\nsealed: %s: %s\n", strings.Join(peers[reason], ", "), reason)
	}
	for _, p := range s.Peers {
		for _, a := range p.Alarms {
			fmt.Fprintf(w, "\n%s, alarm %s since %s: %s\n", p.ID, a.Kind, shortTime(a.Since), a.Detail)
		}
		if p.AuditFault != "" {
			fmt.Fprintf(w, "\n%s, audit log: %s\n", p.ID, p.AuditFault)
		}
		if p.Damaged > 0 {
			fmt.Fprintf(w, "\n%s cannot decrypt %s\n", p.ID, count(p.Damaged, "record"))
		}
	}
	for _, k := range s.Keepers {
		if k.Health != "good" && k.Health != "held" && k.Health != "empty" && k.Detail != "" && s.Initialised { // those say it all
			fmt.Fprintf(w, "\n%s: %s\n", k.Name, k.Detail)
		}
	}
}

// until writes a moment of today, or of another day with its date.
func until(t time.Time) string {
	if time.Until(t) > 24*time.Hour {
		return shortTime(t)
	}
	return t.UTC().Format("15:04:05Z")
}

func leaderAnswers(s client.Status) bool {
	for _, p := range s.Peers {
		if p.ID == s.Leader {
			return p.Reachable
		}
	}
	return false
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func count(n int, noun string) string { return countAs(n, noun, noun+"s") }

func countAs(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
