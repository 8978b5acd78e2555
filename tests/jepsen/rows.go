package main

import (
	"fmt"
	"slices"
	"strings"
)

// row is one kind of failure that a cluster of this sort must survive, with what attacks it. The numbers are those by
// which reports and documents call them.
type row struct {
	number  int
	what    string
	nemeses []string // each with all workloads that make sense under it
	tests   []string // end-to-end tests with the real programs: PACKAGE TestName
	without string   // why nothing attacks it
}

// rows are all of them.
var rows = []row{
	{number: 1, what: "partitions: leader alone, with the learner, halves, bridge, ring, one-way, flapping; links that are slow or lose packets", nemeses: []string{"partition-leader", "partition-leader-learner",
		"partition-halves", "partition-bridge", "partition-ring", "partition-deaf-leader", "partition-mute-leader", "partition-flapping", "links-slow", "links-lossy"}},
	{number: 2, what: "a leader frozen for longer and for less than a lease, at its most awkward moments, and with answers to it still on their way", nemeses: []string{"freeze-leader", "freeze-shortly", "freeze-follower", "freeze-awkward", "slow-clock-answers"}},
	{number: 3, what: "an old leader heard by none goes on writing when it is back: entries forged, as in hashicorp/raft#695", nemeses: []string{"slow-clock-leader"}, tests: []string{"./tests/jepsen/forged TestFrozenLeader"}},
	{number: 4, what: "power lost, with what was not synced: one peer, all peers at once, after an fsync that failed", nemeses: []string{"power-loss-one", "power-loss-all", "power-loss-torn", "fsync-fails", "fsync-failed"}},
	{number: 5, what: "SIGKILL: one, a majority, all, and at each step of the programs that matters", nemeses: []string{"kill-leader", "kill-one", "kill-majority", "kill-all", "failpoints"},
		tests: []string{"./tests/e2e TestCrashesInRekey", "./tests/e2e TestCrashesInRotation"}},
	{number: 6, what: "no room on a disk, and on every one; a disk that turns read-only", nemeses: []string{"disk-full-leader", "disk-full-follower", "disk-full-all", "disk-readonly"}},
	{number: 7, what: "the leader's disk hangs, or is slow", nemeses: []string{"disk-stall-leader", "disk-hang-leader", "disk-slow-leader"}},
	{number: 8, what: "a follower's disk hangs, or is slow", nemeses: []string{"disk-stall-follower", "disk-slow-follower"}},
	{number: 9, what: "files of a dead voter are damaged", nemeses: []string{"damage-log", "damage-snapshot", "damage-marker", "damage-audit"}},
	{number: 10, what: "a peer loses its disk", nemeses: []string{"wipe"}},
	{number: 11, what: "members change under partitions and kills", nemeses: []string{"member-churn", "member-churn+partition-leader", "member-churn+partition-flapping", "member-churn+kill-leader"}},
	{number: 12, what: "all peers come back at other addresses", nemeses: []string{"readdress"}},
	{number: 13, what: "an upgrade peer by peer, each version leading the other", nemeses: []string{"upgrade"}, tests: []string{"./tests/upgrade TestUpgrade"}},
	{number: 14, what: "leadership is handed around without a pause, and the one that it goes to dies", nemeses: []string{"transfer-storm", "transfer-kill", "transfer-storm+kill-one"}},
	{number: 15, what: "snapshots all the time, a follower and an old leader that can go on with one alone", nemeses: []string{"snapshot-follower", "snapshot-leader", "links-narrow"}},
	{number: 16, what: "jumps of the wall clock", without: "the clock of the whole machine would jump, and Go asks the kernel for the time in a way that no preloaded library changes; nothing that safety rests on reads the wall clock (monotonic time and replicated ticks)"},
	{number: 17, what: "Keepers lost or silent, but for enough; and all of them: running peers serve on, a restarted one stays sealed", nemeses: []string{"keepers-restart", "keepers-too-few", "keepers-silent", "keepers-lost"}},
	{number: 18, what: "all Keepers and all peers restart: sealed and reachable, and opened with recovery shares", nemeses: []string{"shares-lost"}},
	{number: 19, what: "a Keeper with a wrong share, and one with an old share", nemeses: []string{"shares-wrong"}, tests: []string{"./tests/e2e TestWrongShare", "./tests/e2e TestRollingKeeperRestart"}},
	{number: 20, what: "an operator's seal, with a peer cut off, frozen, or dying", nemeses: []string{"seal", "seal+freeze-follower", "seal+kill-one"}},
	{number: 21, what: "keys rotated, and all of them replaced, under partitions and kills", nemeses: []string{"rotation", "partition-leader+rotate", "kill-leader+rotate", "rotate", "rekey", "rekey+partition-halves"}},
	{number: 22, what: "revoked, then read through every peer", nemeses: []string{"partition-leader-learner", "partition-deaf-leader", "partition-mute-leader", "partition-flapping", "freeze-leader", "snapshot-follower"}},
	{number: 23, what: "deleted or destroyed, then read through every peer", nemeses: []string{"partition-leader-learner", "partition-deaf-leader", "partition-mute-leader", "partition-flapping", "freeze-leader", "kill-all", "snapshot-follower"}},
	{number: 24, what: "granted, then used at once elsewhere", nemeses: []string{"none", "partition-flapping"}},
	{number: 25, what: "a new cluster out of the archive, all old ones dead, killed at each step", tests: []string{"./tests/e2e TestLossOfEverything", "./tests/e2e TestColdStart"}},
	{number: 26, what: "a restore into the running cluster, killed at each step, and under load", nemeses: []string{"restore-live", "restore-live-kill"}, tests: []string{"./tests/e2e TestCrashesInRestoreLive"}},
	{number: 27, what: "the majority is lost, one peer goes on alone, and the lost ones come back", tests: []string{"./tests/e2e TestMembership"}},
	{number: 28, what: "a store that fails, also after it succeeded, two clusters in one place, leaders that were replaced; nobody gets through to it, it hangs, is late, or lies", nemeses: []string{"store-down", "store-slow", "store-fails", "store-fails+kill-leader", "store-lies"}, tests: []string{"./tests/e2e TestLossWithFailingStore"}},
	{number: 29, what: "federation of several stores", without: "there is no federation in this product"},
	{number: 30, what: "identities expire, and their authority is replaced; none is to be had for longer than one lives", nemeses: []string{"svid-short", "identity-down"}, tests: []string{"./tests/e2e TestRotationOfIdentities"}},
	{number: 31, what: "no room for the audit log, or a slow disk under it", nemeses: []string{"audit-full", "audit-slow"}},
	{number: 32, what: "floods and hostile requests; honest clients go on", nemeses: []string{"hostile"}, tests: []string{"./tests/e2e TestFlood"}},
	{number: 33, what: "one voter is never heard again, or hears nobody: the others lose nothing by it, and terms stand still", nemeses: []string{"mute-forever", "deaf-forever"}},
	{number: 34, what: "two overlapping harms, drawn at random, for as long as one likes", without: "make jepsen-soak HOURS=48 is it; what is left out of the full tier is its length"},
}

// tests are the end-to-end tests of all rows.
func tests() (list []string) {
	for _, r := range rows {
		list = append(list, r.tests...)
	}
	return list
}

// full are the nemeses of all rows, each once, in their order.
func full() (names []string) {
	for _, r := range rows {
		for _, n := range r.nemeses {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return names
}

// rowsOf are the rows that a nemesis attacks.
func rowsOf(name string) (numbers []int) {
	for _, r := range rows {
		if slices.Contains(r.nemeses, name) {
			numbers = append(numbers, r.number)
		}
	}
	return numbers
}

// table is the rows as Markdown.
func table() string {
	var b strings.Builder
	b.WriteString("| Row | What | Attacked by |\n|---|---|---|\n")
	for _, r := range rows {
		by := r.without
		if by == "" {
			var list []string
			for _, n := range append(slices.Clone(r.nemeses), r.tests...) {
				list = append(list, "`"+n+"`")
			}
			by = strings.Join(list, ", ")
		} else {
			by = "left out: " + by
		}
		fmt.Fprintf(&b, "| %d | %s | %s |\n", r.number, r.what, by)
	}
	return b.String()
}
