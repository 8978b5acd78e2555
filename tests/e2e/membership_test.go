package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// membership is a cluster whose members change, by spikectl.
type membership struct {
	*brokenCluster
	dir   string
	env   []string
	extra *process.Spawner
	procs map[string]*process.Child
	links map[string]string // addresses of peer links
}

func newMembership(t testing.TB, o harness.Options) *membership {
	m := &membership{brokenCluster: broken(t, o), extra: process.NewSpawner(), procs: map[string]*process.Child{}, links: map[string]string{}}
	m.dir = filepath.Dir(m.arg(m.Peer(0), "--data-dir"))
	for i := range m.Peers() {
		m.procs[harness.PeerName(i)] = m.Peer(i)
		m.links[harness.PeerName(i)] = m.PeerAddress(i)
	}
	socket, err := m.Authority.Add(harness.Superuser)
	m.must(err)
	m.env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+socket, "SPIKE_TRUST_ROOT="+harness.TrustDomain)
	t.Cleanup(func() {
		for _, p := range m.procs {
			p.Kill()
		}
		m.extra.Close()
	})
	return m
}

func (m *membership) arg(p *process.Child, flag string) string {
	if i := slices.Index(p.Args, flag); i >= 0 {
		return p.Args[i+1]
	}
	return ""
}

func (m *membership) set(id, flag, value string) {
	p := m.procs[id]
	if i := slices.Index(p.Args, flag); i >= 0 {
		p.Args[i+1] = value
		return
	}
	p.Args = append([]string{flag, value}, p.Args...)
}

func (m *membership) data(id string) string { return m.arg(m.procs[id], "--data-dir") }

// newcomer starts a peer that joins and is not added yet.
func (m *membership) newcomer(id string) (address string) {
	m.t.Helper()
	like := m.Peer(0)
	socket, err := m.Authority.Add("/spike/nexus/" + id)
	m.must(err)
	api, link, metrics := free(m.t), free(m.t), free(m.t)
	p := &process.Child{Name: id, Address: "https://" + api, Binary: like.Binary, Args: slices.Clone(like.Args), Spawner: m.extra,
		LogFile: filepath.Join(filepath.Dir(m.dir), "logs", id+".log")}
	m.procs[id], m.links[id] = p, link
	for flag, value := range map[string]string{"--id": id, "--data-dir": filepath.Join(m.dir, id), "--listen": api, "--peer-listen": link,
		"--metrics-listen": metrics, "--endpoint-socket": socket} {
		m.set(id, flag, value)
	}
	i := slices.Index(p.Args, "--peers")
	p.Args[i] = "--join"
	m.must(p.Start())
	return link
}

func free(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// try runs spikectl, which asks the peers that run; ctl's must succeed.
func (m *membership) try(args ...string) (stdout, stderr string, err error) {
	var urls []string
	for _, p := range m.procs {
		if _, _, up := p.Running(); up {
			urls = append(urls, p.Address)
		}
	}
	limit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(limit, filepath.Join(bin, "spikectl"), args...)
	cmd.Env = append(slices.Clone(m.env), "SPIKE_NEXUS_API_URLS="+strings.Join(urls, ","))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

func (m *membership) ctl(args ...string) string {
	m.t.Helper()
	out, words, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("spikectl %s: %v\n%s", strings.Join(args, " "), err, words)
	}
	return out
}

// refused runs spikectl, which must fail with a word of why.
func (m *membership) refused(why string, args ...string) {
	m.t.Helper()
	if _, words, err := m.try(args...); err == nil || !strings.Contains(words, why) {
		m.t.Errorf("spikectl %s: %v\n%s\nwant a refusal that says %q", strings.Join(args, " "), err, words, why)
	}
}

func (m *membership) until(what string, check func() error) {
	m.t.Helper()
	limit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := harness.Poll(limit, check); err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

func (m *membership) status() (s client.Status, err error) {
	out, words, err := m.try("status", "--format", "json")
	if err != nil {
		return s, errors.New(words)
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// are waits until the members are these, all up and with their keys; learners
// have a "~" before their names.
func (m *membership) are(ids ...string) (s client.Status) {
	m.t.Helper()
	m.until("the members "+strings.Join(ids, " "), func() (err error) {
		if s, err = m.status(); err != nil {
			return err
		}
		var have []string
		for _, p := range s.Peers {
			name := p.ID
			if !p.Voter {
				name = "~" + name
			}
			if !p.Reachable || p.Sealed {
				return fmt.Errorf("%s: %s %s", p.ID, p.State, p.Reason)
			}
			have = append(have, name)
		}
		if s.Leader == "" || !slices.Equal(have, ids) {
			return fmt.Errorf("leader %q, members %v", s.Leader, have)
		}
		return nil
	})
	return s
}

func (m *membership) put(path, value string) {
	m.t.Helper()
	m.ctl("secret", "put", path, "k="+value)
}

func (m *membership) has(path, value string) {
	m.t.Helper()
	if got := strings.TrimSpace(m.ctl("secret", "get", path, "k")); got != value {
		m.t.Errorf("%s is %q, not %q", path, got, value)
	}
}

// The life of a cluster's members, each step by spikectl against real processes,
// with what was acknowledged before held against what there is after.
func TestMembership(t *testing.T) {
	t.Parallel()
	m := newMembership(t, harness.Options{Voters: 3, Args: []string{"--drain-grace", "0s"}})
	m.are("nexus-1", "nexus-2", "nexus-3")
	m.put("a/first", "1")

	// Join, promote, transfer, demote; drain and back.
	four := m.newcomer("nexus-4")
	m.refused("there is no member nexus-4", "cluster", "promote", "nexus-4")
	m.ctl("cluster", "join", "nexus-4", four)
	m.ctl("cluster", "join", "nexus-4", four) // twice is once
	m.are("nexus-1", "nexus-2", "nexus-3", "~nexus-4")
	m.refused("there is such a member already", "cluster", "join", "nexus-4", m.links["nexus-1"])
	m.until("nexus-4 is promoted", func() error { _, _, err := m.try("cluster", "promote", "nexus-4"); return err })
	m.ctl("cluster", "transfer", "nexus-4")
	m.until("nexus-4 leads", func() error {
		if s := m.are("nexus-1", "nexus-2", "nexus-3", "nexus-4"); s.Leader != "nexus-4" {
			return fmt.Errorf("%s leads", s.Leader)
		}
		return nil
	})
	m.ctl("cluster", "drain", "nexus-4")
	s := m.are("nexus-1", "nexus-2", "nexus-3", "nexus-4")
	if s.Leader == "nexus-4" || !s.Peers[3].Draining {
		t.Errorf("after a drain %s leads; %+v", s.Leader, s.Peers[3])
	}
	m.has("a/first", "1")
	m.ctl("cluster", "drain", "nexus-4", "--undo")
	m.ctl("cluster", "demote", "nexus-4", "--yes")
	s = m.are("nexus-1", "nexus-2", "nexus-3", "~nexus-4")
	if s.Peers[3].Draining {
		t.Error("still drained")
	}
	m.put("a/second", "2")

	// One dies and is replaced; the command is interrupted, and run again.
	m.procs["nexus-3"].Kill()
	m.refused("cannot take its own place", "cluster", "replace", "nexus-3", "nexus-3", four, "--yes")
	m.refused("no member nexus-9", "cluster", "replace", "nexus-9", "nexus-5", four, "--yes")
	socket := free(t)
	m.refused("waiting for nexus-5", "--timeout", "3s", "cluster", "replace", "nexus-3", "nexus-5", socket, "--yes")
	m.ctl("cluster", "remove", "nexus-5", "--yes")
	five := m.newcomer("nexus-5")
	m.ctl("cluster", "replace", "nexus-3", "nexus-5", five, "--yes")
	m.ctl("cluster", "replace", "nexus-3", "nexus-5", five, "--yes") // done already
	m.are("nexus-1", "nexus-2", "~nexus-4", "nexus-5")
	m.has("a/second", "2")

	// A removed peer says so, and is not asked again.
	m.ctl("cluster", "remove", "nexus-4", "--yes")
	m.until("the removed peer says so", func() error {
		out, words, err := m.try("--address", m.procs["nexus-4"].Address, "status", "--format", "json")
		if err != nil || !strings.Contains(out, `"removed"`) {
			return fmt.Errorf("%s %s", out, words)
		}
		return nil
	})
	m.procs["nexus-4"].Kill()

	// A wiped voter stays out until it is removed and joins again.
	m.procs["nexus-1"].Kill()
	m.must(os.RemoveAll(m.data("nexus-1")))
	m.must(m.procs["nexus-1"].Start())
	m.refused("there is such a member already", "cluster", "join", "nexus-1", m.links["nexus-1"])
	m.ctl("cluster", "remove", "nexus-1", "--yes")
	m.ctl("cluster", "join", "nexus-1", m.links["nexus-1"])
	m.are("~nexus-1", "nexus-2", "nexus-5")
	m.until("nexus-1 is promoted", func() error { _, _, err := m.try("cluster", "promote", "nexus-1"); return err })

	// All move at once. nexus-5, which nobody has in a list, announces itself.
	ids := []string{"nexus-1", "nexus-2", "nexus-5"}
	var list []string
	for _, id := range ids {
		m.procs[id].Kill()
		m.links[id] = free(t)
		list = append(list, id+"="+m.links[id])
	}
	for _, id := range ids {
		m.set(id, "--peer-listen", m.links[id])
		if id == "nexus-5" {
			m.set(id, "--join", strings.Join(list[:2], ","))
			m.set(id, "--advertise", m.links[id])
		} else {
			m.set(id, "--peers", strings.Join(list[:2], ","))
		}
	}
	for _, id := range ids {
		m.must(m.procs[id].Start())
	}
	m.until("the new addresses are in the configuration", func() error {
		for _, p := range m.are(ids...).Peers {
			if p.Address != m.links[p.ID] {
				return fmt.Errorf("%s at %s", p.ID, p.Address)
			}
		}
		return nil
	})
	m.has("a/first", "1")

	// The majority is lost. nexus-1 went first and lacks the last write: it is not
	// what the cluster can go on from, and nexus-2 is.
	m.procs["nexus-1"].Kill()
	m.put("a/third", "3")
	m.procs["nexus-5"].Kill()
	recover := func(id string, more ...string) []string {
		return append([]string{"cluster", "recover", "--data-dir", m.data(id), "--yes", "--peers", "nexus-1=" + m.links["nexus-1"] + ",nexus-2=" + m.links["nexus-2"]}, more...)
	}
	m.until("nexus-2 knows no leader", func() error {
		if s, err := m.status(); err != nil || s.Leader != "" {
			return fmt.Errorf("%q, %v", s.Leader, err)
		}
		return nil
	})
	m.refused("in use", recover("nexus-2")...)
	m.refused("newer data", recover("nexus-1")...)
	m.procs["nexus-2"].Kill()
	m.refused("not known what nexus-2 holds", recover("nexus-1")...)
	report := filepath.Join(m.dir, "report")
	m.must(os.WriteFile(report, []byte(m.ctl("cluster", "inspect", "--data-dir", m.data("nexus-2"), "--format", "json")), 0o600))
	m.refused("newer data", recover("nexus-1", "--report", report)...)
	m.must(os.WriteFile(report, []byte(m.ctl("cluster", "inspect", "--data-dir", m.data("nexus-1"), "--format", "json")), 0o600))
	m.ctl(recover("nexus-2", "--report", report, "--dry-run")...)
	m.ctl(recover("nexus-2", "--report", report)...)
	m.must(m.procs["nexus-2"].Start())
	m.are("nexus-2")
	for path, value := range map[string]string{"a/first": "1", "a/second": "2", "a/third": "3"} {
		m.has(path, value)
	}
	m.put("a/fourth", "4")
	m.ctl("audit", "verify", filepath.Join(m.data("nexus-2"), "audit"), "--peer", "nexus-2")

	// The others come back as they were: they end, and do not start again.
	for _, id := range []string{"nexus-1", "nexus-5"} {
		m.must(m.procs[id].Start())
		m.until(id+" ends", func() error {
			if _, _, up := m.procs[id].Running(); up {
				return errors.New("it runs")
			}
			return nil
		})
		m.must(os.RemoveAll(filepath.Join(m.data(id), "raft")))
		m.must(m.procs[id].Start())
		m.ctl("cluster", "join", id, m.links[id])
	}
	m.are("~nexus-1", "nexus-2", "~nexus-5")
	// nexus-5 had its audit log from its start to here, nexus-1 lost a part before.
	m.ctl("audit", "verify", filepath.Join(m.data("nexus-5"), "audit"), "--peer", "nexus-5")
	m.has("a/fourth", "4")
}

// A dead peer is removed by itself when that is switched on, down to the least
// number of voters and not below.
func TestDeadPeerIsRemoved(t *testing.T) {
	t.Parallel()
	m := newMembership(t, harness.Options{Voters: 4, Args: []string{"--dead-peer-after", "3s", "--drain-grace", "0s"}})
	m.are("nexus-1", "nexus-2", "nexus-3", "nexus-4")
	m.procs["nexus-4"].Kill()
	m.are("nexus-1", "nexus-2", "nexus-3")
	m.procs["nexus-3"].Kill()
	for began := time.Now(); time.Since(began) < 6*time.Second; {
		if s, err := m.status(); err == nil && len(s.Peers) != 3 {
			t.Fatalf("%d members are left", len(s.Peers))
		}
	}
}
