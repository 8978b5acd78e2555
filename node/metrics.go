package node

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/spike-ha/spike-ha/cluster"
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
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry(), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if leaving, _ := n.Draining(); leaving || n.store.Sealed() || n.cluster.Status().Leader == "" || n.audit.Err() != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, "not ready")
			return
		}
		fmt.Fprintln(w, "ok")
	})
	n.metrics = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	n.loops.Go(func() { n.metrics.Serve(listener) })
	return nil
}

func (n *Node) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	boolean := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge("spike_core_unsealed", "1 when this peer has its keys and serves.", func() float64 { return boolean(!n.store.Sealed()) })
	gauge("spike_core_draining", "1 while this peer is being drained: its clients and leadership go to others.", func() float64 { leaving, _ := n.Draining(); return boolean(leaving) })
	gauge("spike_core_watches", "Watches of changes that wait at this peer.", func() float64 { return float64(n.api.Watches()) })
	gauge("spike_raft_is_leader", "1 on the leader.", func() float64 { return boolean(n.leads()) })
	gauge("spike_raft_has_leader", "1 when this peer knows a leader.", func() float64 { return boolean(n.cluster.Status().Leader != "") })
	gauge("spike_raft_term", "Raft term.", func() float64 { return float64(n.cluster.Status().Term) })
	gauge("spike_raft_commit_index", "Raft commit index.", func() float64 { return float64(n.cluster.Status().CommitIndex) })
	gauge("spike_raft_applied_index", "Raft index of the newest view.", func() float64 { return float64(n.machine.View().Index()) })
	gauge("spike_raft_members", "Members of the cluster.", func() float64 { return float64(len(n.cluster.Status().Members)) })
	gauge("spike_raft_last_contact_seconds", "Time since the leader was heard; -1 when never.", func() float64 {
		if s := n.cluster.Status(); s.State != cluster.Leads {
			return s.LastContact.Seconds()
		}
		return 0
	})
	gauge("spike_raft_snapshot_installs", "Snapshots installed from a leader since the start.", func() float64 { return float64(n.cluster.Status().Installs) })
	gauge("spike_raft_disk_stalls", "Writes to the Raft log that took seconds, since the start.", func() float64 { return float64(n.cluster.Status().DiskStalls) })
	for _, kind := range cluster.AlarmKinds {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "spike_alarm", Help: "1 while this alarm is on; spikectl status says what to do.",
			ConstLabels: prometheus.Labels{"kind": string(kind)}}, func() float64 {
			return boolean(slices.ContainsFunc(n.cluster.Status().Alarms, func(a cluster.Alarm) bool { return a.Kind == kind }))
		}))
	}
	gauge("spike_state_secrets", "Secrets.", func() float64 { return float64(n.machine.View().SecretCount()) })
	gauge("spike_state_bytes", "Bytes of replicated state.", func() float64 { b, _ := n.machine.View().Size(); return float64(b) })
	gauge("spike_state_limit_bytes", "Bound of the replicated state.", func() float64 { _, b := n.machine.View().Size(); return float64(b) })
	gauge("spike_state_policies", "Policies.", func() float64 { return float64(n.machine.View().PolicyCount()) })
	gauge("spike_state_damaged_records", "Records that this peer cannot decrypt and does not serve.", func() float64 { return float64(n.store.Damaged()) })
	gauge("spike_audit_chain_broken", "1 when this peer's audit chain did not contain its anchor at the last start.", func() float64 {
		n.mu.Lock()
		defer n.mu.Unlock()
		return boolean(n.auditFault != "")
	})
	gauge("spike_audit_records", "Records in this peer's audit chain.", func() float64 { return float64(n.audit.Count()) })
	gauge("spike_audit_failed", "1 when the audit log refuses records, and so this peer answers nothing.", func() float64 { return boolean(n.audit.Err() != nil) })
	gauge("spike_svid_expiry_timestamp_seconds", "When this peer's SVID ends.", func() float64 { return float64(n.source.Expiry().Unix()) })
	return r
}
