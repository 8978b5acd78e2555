package node

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"sort"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/spike-ha/spike-ha/api"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/internal/measure"
	"github.com/spike-ha/spike-ha/seal"
)

// serveMetrics answers on the metrics address: numbers and probes, without any
// data and without client certificates.
func (n *Node) serveMetrics() error {
	if n.cfg.MetricsListen == "" {
		return nil
	}
	listener, err := net.Listen("tcp", listenAddress(n.cfg.MetricsListen))
	if err != nil {
		return fmt.Errorf("the metrics port cannot listen: %w", err)
	}
	n.metricsAddress = listener.Addr().String()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), metrics{n})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /livez", probe(n.live))
	mux.HandleFunc("GET /readyz", probe(n.ready))
	n.metrics = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	n.loops.Go(func() { n.metrics.Serve(listener) })
	return nil
}

// metrics shows this peer to Prometheus. Everything is read from memory when it
// asks, each part once, and nobody else is asked: what takes that is observed in
// the background and left out when it is too old. Labels have few values, which
// are ours: never a path, an identity or a policy.
type metrics struct{ n *Node }

// Describe tells nothing beforehand, so that families may come and go.
func (metrics) Describe(chan<- *prometheus.Desc) {}

// sink names and sends what a scrape finds.
type sink chan<- prometheus.Metric

func (s sink) gauge(name, help string, value float64, labels ...string) {
	s.send(prometheus.GaugeValue, name, help, value, labels)
}

func (s sink) counter(name, help string, value uint64, labels ...string) {
	s.send(prometheus.CounterValue, name, help, float64(value), labels)
}

func (s sink) histogram(name, help string, d measure.Distribution, labels ...string) {
	desc, values := describe(name, help, labels)
	buckets := make(map[float64]uint64, len(measure.Bounds))
	var sum uint64
	for i, bound := range measure.Bounds {
		sum += d.Counts[i]
		buckets[bound.Seconds()] = sum
	}
	s <- prometheus.MustNewConstHistogram(desc, d.Count(), d.Sum.Seconds(), buckets, values...)
}

func (s sink) send(kind prometheus.ValueType, name, help string, value float64, labels []string) {
	desc, values := describe(name, help, labels)
	s <- prometheus.MustNewConstMetric(desc, kind, value, values...)
}

// describe takes labels as names and values in turn.
func describe(name, help string, labels []string) (*prometheus.Desc, []string) {
	var names, values []string
	for i := 0; i+1 < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	return prometheus.NewDesc(name, help, names, nil), values
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Collect implements prometheus.Collector.
func (m metrics) Collect(out chan<- prometheus.Metric) {
	s, status := sink(out), m.n.cluster.Status()
	m.core(s, status)
	m.raft(s, status)
	m.state(s)
	m.audit(s)
	m.keepers(s)
	m.archive(s)
	m.requests(s, m.n.api.Stats())
}

func (m metrics) core(s sink, status cluster.Status) {
	const alarmHelp = "1 while this alarm is on; spikectl status says what to do."
	n := m.n
	leaving, _ := n.Draining()
	s.gauge("spike_core_info", "Always 1; the release of this peer.", 1, "version", Version)
	s.gauge("spike_core_unsealed", "1 when this peer has its keys and serves.", boolean(!n.store.Sealed()))
	s.gauge("spike_core_ready", "1 when /readyz says so.", boolean(n.ready() == nil))
	s.gauge("spike_core_draining", "1 while this peer is being drained: its clients and leadership go to others.", boolean(leaving))
	s.gauge("spike_core_watches", "Watches of changes that wait at this peer.", float64(n.api.Watches()))
	s.gauge("spike_svid_expiry_timestamp_seconds", "When this peer's SVID ends.", float64(n.source.Expiry().Unix()))
	for _, kind := range cluster.AlarmKinds {
		on := slices.ContainsFunc(status.Alarms, func(a cluster.Alarm) bool { return a.Kind == kind })
		s.gauge("spike_alarm", alarmHelp, boolean(on), "kind", string(kind))
	}
	_, fault := seal.MemoryFault()
	s.gauge("spike_alarm", alarmHelp, boolean(fault != nil), "kind", alarmMemory)
}

func (m metrics) raft(s sink, status cluster.Status) {
	n, stats := m.n, m.n.cluster.Stats()
	leads := status.State == cluster.Leads
	s.gauge("spike_raft_is_leader", "1 on the leader.", boolean(leads))
	s.gauge("spike_raft_has_leader", "1 when this peer knows a leader.", boolean(status.Leader != ""))
	s.gauge("spike_raft_term", "Raft term.", float64(status.Term))
	s.gauge("spike_raft_commit_index", "Raft commit index.", float64(status.CommitIndex))
	s.gauge("spike_raft_applied_index", "Raft index of the newest view.", float64(n.machine.View().Index()))
	s.gauge("spike_raft_lag_entries", "Entries that the leader has committed and this peer has not applied.", float64(status.Lag))
	s.gauge("spike_raft_members", "Members of the cluster.", float64(len(status.Members)))
	s.gauge("spike_raft_last_contact_seconds", "Time since the leader was heard; -1 when never.", max(status.LastContact.Seconds(), -1))
	if tolerance, ok := n.tolerance.recent(n.now()); ok && leads {
		s.gauge("spike_raft_failure_tolerance", "Voters that may still fail, as the leader sees it; on the leader alone.", float64(tolerance))
	}
	s.counter("spike_raft_elections_total", "Elections that this peer stood for.", stats.Elections)
	s.counter("spike_raft_leader_changes_total", "Times that this peer learnt of a leader, of another or again.", stats.LeaderChanges)
	s.counter("spike_raft_disk_stalls_total", "Writes to the Raft log that took seconds.", stats.DiskStalls)
	const proposals = "Changes proposed at this peer, by outcome; refused ones were certainly not made."
	s.counter("spike_raft_proposals_total", proposals, stats.Applied, "outcome", "applied")
	s.counter("spike_raft_proposals_total", proposals, stats.Refused, "outcome", "refused")
	s.counter("spike_raft_proposals_total", proposals, stats.Unknown, "outcome", "unknown")
	s.counter("spike_raft_proposed_bytes_total", "Bytes of those.", stats.ProposedBytes)
	s.histogram("spike_raft_proposal_seconds", "Time until a proposal was answered: on a majority's disks, and applied.", stats.Proposals)
	s.histogram("spike_raft_apply_seconds", "Time that the state machine took for an entry.", stats.Apply)
	s.histogram("spike_raft_read_round_seconds", "Time of a read-index round that this peer asked for; many reads share one.", stats.Rounds)
	s.counter("spike_raft_read_round_failures_total", "Rounds without an index.", stats.RoundFailures)
	const (
		snapshots = "Snapshots of the state: taken here, installed from a leader."
		took      = "How long the last one took."
		size      = "Size of the last one."
		failures  = "Snapshots that failed."
	)
	for kind, of := range map[string]cluster.SnapshotStats{"taken": stats.Taken, "installed": stats.Installed} {
		s.counter("spike_raft_snapshots_total", snapshots, of.Count, "kind", kind)
		s.gauge("spike_raft_snapshot_last_seconds", took, of.Took.Seconds(), "kind", kind)
		s.gauge("spike_raft_snapshot_last_bytes", size, float64(of.Bytes), "kind", kind)
	}
	s.counter("spike_raft_snapshot_failures_total", failures, stats.SnapshotFailures, "kind", "taken")
	s.counter("spike_raft_snapshot_failures_total", failures, stats.InstallFailures, "kind", "installed")
}

func (m metrics) state(s sink) {
	view := m.n.machine.View()
	size, limit := view.Size()
	s.gauge("spike_state_secrets", "Secrets.", float64(view.SecretCount()))
	s.gauge("spike_state_policies", "Policies.", float64(view.PolicyCount()))
	s.gauge("spike_state_bytes", "Bytes of replicated state.", float64(size))
	s.gauge("spike_state_limit_bytes", "Bound of the replicated state.", float64(limit))
	s.gauge("spike_state_level", "Format level in use by the cluster.", float64(view.Level()))
	s.gauge("spike_state_level_known", "Highest format level that this peer knows.", float64(fsm.Level))
	s.gauge("spike_state_damaged_records", "Records that this peer cannot decrypt and does not serve.", float64(m.n.store.Damaged()))
}

func (m metrics) audit(s sink) {
	n := m.n
	n.mu.Lock()
	broken := n.auditFault != ""
	n.mu.Unlock()
	s.gauge("spike_audit_chain_broken", "1 when this peer's audit chain did not contain its anchor at the last start.", boolean(broken))
	s.gauge("spike_audit_records", "Records in this peer's audit chain.", float64(n.audit.Count()))
	s.gauge("spike_audit_failed", "1 when the audit log refuses records, and so this peer answers nothing.", boolean(n.audit.Err() != nil))
	s.counter("spike_audit_failures_total", "Records that could not be written or made durable, each an answer that was not given.", n.audit.Failures())
	s.counter("spike_audit_anchors_total", "Anchors of this peer's audit chain that the cluster took.", n.anchors.Load())
	s.counter("spike_audit_anchor_failures_total", "Anchors that were not taken, and were tried again.", n.anchorFailures.Load())
}

// keepers are shown by the peer that looks after them: the leader, or while that
// is sealed each that is not.
func (m metrics) keepers(s sink) {
	reports, ok := m.n.keeperLook.recent(m.n.now())
	if !ok {
		return
	}
	good := 0
	for _, r := range reports {
		s.gauge("spike_keeper_good", "1 when this Keeper holds its share, as the peer that looks after them saw it.", boolean(r.good), "keeper", r.name)
		if r.good {
			good++
		}
	}
	s.gauge("spike_keepers_good", "Keepers that hold their share; where spike_keeper_good is.", float64(good))
	if set := sealState(m.n.machine.View()).Committed; set != nil {
		s.gauge("spike_keepers_threshold", "Shares that open the cluster's root key.", float64(set.Threshold))
	}
}

func (m metrics) archive(s sink) {
	st := m.n.archiveStatus()
	if st == nil {
		return
	}
	m.drills(s)
	if a := st.Audit; a != nil {
		s.gauge("spike_archive_audit_waiting", "Closed files of this peer's audit log that are not in the archive.", float64(a.Waiting))
		s.gauge("spike_archive_audit_failing", "1 while attempts to archive them fail.", boolean(a.Error != ""))
	}
	if !st.Active {
		return
	}
	s.gauge("spike_archive_behind_seconds", "How old the oldest change can be that is not in the archive, which would be lost with all peers; on the peer that ships.", st.BehindSeconds)
	s.gauge("spike_archive_shipped_index", "Everything up to this Raft index is in the archive.", float64(st.Shipped))
	s.gauge("spike_archive_failing", "1 while attempts to ship fail.", boolean(st.Error != ""))
	if st.Snapshot > 0 {
		s.gauge("spike_archive_snapshot_timestamp_seconds", "When the newest snapshot went into the archive.", float64(st.SnapshotTime.Unix()))
	}
}

// drills are shown by every peer that has an archive: they are part of the state.
func (m metrics) drills(s sink) {
	view := m.n.machine.View()
	_, every, _ := careOf(view)
	s.gauge("spike_archive_drill_interval_seconds", "Time between two drills of the archive; 0: none are made.", every.Seconds())
	verified := 0.0
	if d := fsm.LastGoodDrill(view.Drills()); d != nil {
		verified = float64(d.Time) / 1e9
	}
	s.gauge("spike_archive_drill_success_timestamp_seconds", "When the archive was last restored in a drill; 0: never.", verified)
	last := newestDrill(view)
	s.gauge("spike_archive_drill_failed", "1 when the last drill of the archive failed.", boolean(last.GetReason() != ""))
	s.gauge("spike_archive_drill_seconds", "How long the last drill took.", float64(last.GetMilliseconds())/1000)
}

func (m metrics) requests(s sink, stats api.Stats) {
	sort.Slice(stats.Routes, func(i, j int) bool { return stats.Routes[i].Route < stats.Routes[j].Route })
	for _, r := range stats.Routes {
		for _, a := range r.Answers {
			s.counter("spike_api_requests_total", "Requests, by kind and status of the answer.", a.Count, "route", r.Route, "code", a.Code)
		}
		s.histogram("spike_api_request_seconds", "Time from a request to the end of its answer; of a watch, its waiting included.", r.Took, "route", r.Route)
	}
	for _, l := range stats.Lanes {
		s.gauge("spike_api_requests_running", "Requests that run now, by the places that they share.", float64(l.Running), "lane", l.Lane)
		s.gauge("spike_api_requests_waiting", "Requests that wait for a place.", float64(l.Waiting), "lane", l.Lane)
		s.counter("spike_api_requests_refused_total", "Requests that found no place.", l.Refused, "lane", l.Lane)
	}
}
