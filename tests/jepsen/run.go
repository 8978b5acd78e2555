package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/internal/planted"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/jepsen/check"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
	"github.com/spike-ha/spike-ha/tests/jepsen/nemesis"
	"github.com/spike-ha/spike-ha/tests/jepsen/report"
	"github.com/spike-ha/spike-ha/tests/jepsen/workload"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

// Cell is one run: a nemesis, workloads, a seed and a length.
type Cell struct {
	Nemesis   string
	Workloads []string
	Seed      uint64
	Length    time.Duration
	Pace      time.Duration // the pause of a process between two operations: it bounds the histories, and leaves the machine to the cluster
	Voters    int
	Learners  int
	Keepers   int
	// Namespaces gives each process a network of its own, instead of a proxy to the others.
	Namespaces bool
	Drawn      bool           // the nemesis is a pair drawn by chance: one of the two may keep the other from doing any harm
	Attempt    time.Duration  // bounds one operation; 0: what is usual
	Defect     planted.Defect // that the programs have on purpose; "" for none
}

// Name is short, and the same for the same kind of run.
func (c Cell) Name() string {
	if c.Defect != "" {
		return fmt.Sprintf("%s-%s-%d", c.Defect, c.Nemesis, c.Seed)
	}
	if c.Namespaces {
		return fmt.Sprintf("%s-namespaces-%d", c.Nemesis, c.Seed)
	}
	return fmt.Sprintf("%s-%d", c.Nemesis, c.Seed)
}

// config is what was asked for besides the nemesis and the seed.
func (c Cell) config() string {
	links := "proxies on loopback"
	if c.Namespaces {
		links = "a network for each process"
	}
	text := fmt.Sprintf("%d voters, %d learners, %d Keepers, %s, attacked for %s, pauses of %s", c.Voters, c.Learners, c.Keepers, links, c.Length, c.Pace)
	if c.Drawn {
		text += ", pairs drawn"
	}
	if len(c.Workloads) > 0 {
		text += ", workloads " + strings.Join(c.Workloads, " ")
	}
	return text
}

const (
	// bringUp bounds the start of a cluster, and recover how long it may take after a fault is over until every peer answers.
	bringUp = 90 * time.Second
	recover = 45 * time.Second
	// settle is when, after a fault began, whom it silences must not answer any more: what was on its way then has arrived or ended.
	settle = 2 * time.Second
	// goOn is by when, after a fault began, those that have to go on must have answered something that was asked after settle.
	goOn = 10 * time.Second
	// least is how many operations each peer must have answered, each second of the run in which it could, for it to mean anything.
	least = 5
	// maxLogBytes is how large the file of a Raft log may get: four times what causes a snapshot.
	maxLogBytes = 64 << 20
)

type run struct {
	cell     Cell
	nemesis  nemesis.Nemesis
	dir      string // all that the processes write
	target   *nemesis.Target
	recorder *history.Recorder
	faults   []report.Fault
	problems []string              // that make the run invalid
	broken   []string              // violations that were seen while a fault lasted or after it
	silent   map[int]time.Duration // for how long a peer could not answer
	mixed    bool                  // some peers are of another version, and refuse what they do not know
	terms    [2]uint64             // of Raft, at the begin and at the end

	mu      sync.Mutex // guards what follows
	closers []func()
	lags    []report.Lag // of the archive
}

// execute runs a cell. The error is of the harness; what was found is in the report.
func execute(ctx context.Context, cell Cell, binaries, out string) (*report.Run, error) {
	nem, err := nemesis.Find(cell.Nemesis, cell.Drawn)
	if err != nil {
		return nil, err
	}
	if nem.Privileged && os.Geteuid() != 0 {
		return nil, fmt.Errorf("%s needs root", nem.Name)
	}
	dir, err := os.MkdirTemp("", "jep") // short, for the sake of sockets
	if err != nil {
		return nil, err
	}
	r := &run{cell: cell, nemesis: nem, dir: dir, silent: map[int]time.Duration{}}
	o := harness.Options{Dir: dir, Binaries: binaries, Voters: cell.Voters, Learners: cell.Learners, Keepers: cell.Keepers, Links: true, Namespaces: cell.Namespaces}
	if cell.Defect != "" {
		o.Env = []string{"SPIKE_PLANTED=" + string(cell.Defect)}
	}
	if nem.Prepare != nil {
		nem.Prepare(&o)
	}
	if o.Failpoints {
		o.Binaries = filepath.Join(binaries, "failpoints")
	}
	if o.Store { // which may take longer than a cluster may to start
		if err := s3server.Build(); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	started, cancel := context.WithTimeout(ctx, bringUp)
	defer cancel()
	r.mixed = len(o.Versions) > 0
	c, err := harness.Start(started, o)
	keep := true
	defer func() {
		for _, done := range r.closers {
			done()
		}
		c.Close()
		if keep {
			if err := move(dir, filepath.Join(out, cell.Name()+".data")); err != nil {
				fmt.Fprintf(os.Stderr, "what %s wrote stays in %s: %v\n", cell.Name(), dir, err)
			}
			return
		}
		os.RemoveAll(dir)
	}()
	if err != nil {
		return nil, fmt.Errorf("the cluster does not start: %w", err)
	}
	operator, err := r.clients(c)(harness.Superuser, history.Anybody)
	if err != nil {
		return nil, err
	}
	err = harness.Poll(started, func() error { // nothing newer than what all members know is done before
		s, err := operator.Status(started)
		if err != nil {
			return err
		}
		r.terms[0] = s.Term
		for _, p := range s.Peers {
			if p.Level > s.Level {
				return fmt.Errorf("the format level is %d, %s knows %d", s.Level, p.ID, p.Level)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.recorder = history.NewRecorder()
	r.target = &nemesis.Target{Recorder: r.recorder, Cluster: c, Operator: operator, Voters: cell.Voters, Unlogged: map[int]bool{}, Random: rand.New(rand.NewPCG(cell.Seed, 1<<40))}
	loads, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	r.attack(ctx)
	result := r.judge(ctx, loads)
	keep = result.Verdict != report.Passed && cell.Defect == ""
	return result, nil
}

// move puts a directory into another place, which may be on another file system, instead of what is there.
func move(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if os.Rename(from, to) == nil {
		return nil
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return os.RemoveAll(from)
}

// clients makes clients of the cluster, which are closed at the end.
func (r *run) clients(c *harness.Cluster) workload.Clients {
	return func(path string, peer int, with ...func(*client.Config)) (*client.Client, error) {
		var peers []int
		if peer != history.Anybody {
			peers = []int{peer}
		}
		cl, done, err := c.ClientWith(context.Background(), path, with, peers...)
		if err != nil {
			return nil, err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.closers = append(r.closers, done)
		return cl, nil
	}
}

// loading is the running load.
type loading struct {
	workloads []workload.Workload
	stop      context.CancelFunc
	wait      sync.WaitGroup
	finals    []func(context.Context)
}

func (r *run) load(ctx context.Context) (*loading, error) {
	l := &loading{}
	running, stop := context.WithCancel(ctx)
	l.stop = stop
	l.wait.Go(func() { r.lag(running) })
	clients := r.clients(r.target.Cluster)
	id := 0
	names := r.cell.Workloads
	if len(names) == 0 {
		names = r.nemesis.Workloads
	}
	var err error
	if l.workloads, err = workload.Find(names...); err != nil {
		return nil, err
	}
	for _, w := range l.workloads {
		if w.Setup != nil {
			p := &workload.Process{Client: r.target.Operator, Recorder: r.recorder, Workload: w.Name, Peer: history.Anybody}
			if err := harness.Poll(ctx, func() error { return w.Setup(ctx, p) }); err != nil {
				return nil, fmt.Errorf("%s: %w", w.Name, err)
			}
		}
		for peer := history.Anybody; peer < r.target.Peers(); peer++ {
			for range w.PerPeer {
				id++
				cl, err := clients(harness.Superuser, peer)
				if err != nil {
					return nil, err
				}
				p := &workload.Process{ID: id, Peer: peer, Client: cl, Random: rand.New(rand.NewPCG(r.cell.Seed, uint64(id))), Recorder: r.recorder, Workload: w.Name, Attempt: r.cell.Attempt}
				step, final, err := w.New(p, clients)
				if err != nil {
					return nil, err
				}
				l.wait.Go(func() {
					for running.Err() == nil {
						step(ctx) // what is on its way at the end is waited for
						select {
						case <-running.Done():
						case <-time.After(r.cell.Pace):
						}
					}
				})
				l.finals = append(l.finals, func(ctx context.Context) {
					p.Final = true
					final(ctx)
				})
			}
		}
	}
	return l, nil
}

// lag notes, twice a second, how old the oldest change is that is not archived: what would be lost with everything. Where nobody archives it ends.
func (r *run) lag(ctx context.Context) {
	archives := func(p client.PeerStatus) bool { return p.Archive != nil }
	for first := true; ctx.Err() == nil; r.pause(ctx, 500*time.Millisecond) {
		limit, cancel := context.WithTimeout(ctx, 2*time.Second)
		s, err := r.target.Operator.Status(limit)
		cancel()
		if err != nil {
			continue
		}
		if first && !slices.ContainsFunc(s.Peers, archives) { // no fault was done yet
			return
		}
		first = false
		for _, p := range s.Peers {
			if a := p.Archive; a != nil && a.Active {
				r.mu.Lock()
				r.lags = append(r.lags, report.Lag{At: r.recorder.Now(), Behind: time.Duration(a.BehindSeconds * float64(time.Second))})
				r.mu.Unlock()
			}
		}
	}
}

// attack does harm until the run is long enough, one fault at a time.
func (r *run) attack(ctx context.Context) {
	nem := r.nemesis
	more := func() bool {
		if nem.Faults > 0 {
			return len(r.faults) < nem.Faults
		}
		return r.recorder.Now() < r.cell.Length
	}
	for more() && ctx.Err() == nil {
		r.pause(ctx, time.Second+time.Duration(r.target.Random.IntN(1000))*time.Millisecond)
		limit, cancel := context.WithTimeout(ctx, bringUp)
		f := report.Fault{Nemesis: nem.Name, Begin: r.recorder.Now()}
		harm, err := nem.Do(limit, r.target)
		cancel()
		if err != nil {
			r.problems = append(r.problems, fmt.Sprintf("at %s %s could not be done: %v", f.Begin.Round(time.Millisecond), nem.Name, err))
			if harm.Undo != nil {
				_ = harm.Undo(ctx)
			}
			_ = r.target.Revive()
			return
		}
		f.What, f.Done = harm.What, r.recorder.Now()
		hold := nem.Hold
		if hold == 0 {
			hold = 3*time.Second + time.Duration(r.target.Random.IntN(2000))*time.Millisecond
		}
		r.pause(ctx, hold)
		r.await(ctx, f.Done, harm.Running)
		f.End = r.recorder.Now()
		r.bite(&f, harm)
		if harm.Check != nil {
			if err := harm.Check(ctx); err != nil {
				r.broken = append(r.broken, fmt.Sprintf("during the fault at %s (%s): %v", f.Begin.Round(time.Millisecond), f.What, err))
			}
		}
		if harm.Undo != nil {
			limit, cancel := context.WithTimeout(ctx, bringUp)
			if err := harm.Undo(limit); err != nil {
				r.problems = append(r.problems, fmt.Sprintf("%s could not be undone: %v", harm.What, err))
			}
			cancel()
		}
		if harm.Bit != nil {
			limit, cancel := context.WithTimeout(ctx, recover)
			if err := harm.Bit(limit); err != nil {
				r.problems = append(r.problems, fmt.Sprintf("the fault at %s did not bite: %v", f.Begin.Round(time.Millisecond), err))
			}
			cancel()
		}
		healed := r.recorder.Now()
		if err := r.recovered(ctx, healed); err != nil {
			r.broken = append(r.broken, fmt.Sprintf("after the fault at %s (%s) was over: %v", f.Begin.Round(time.Millisecond), f.What, err))
			f.Recovered = r.recorder.Now()
			r.faults = append(r.faults, f)
			return
		}
		f.Recovered = r.recorder.Now()
		if harm.After != nil {
			limit, cancel := context.WithTimeout(ctx, bringUp)
			if err := harm.After(limit); err != nil {
				r.broken = append(r.broken, fmt.Sprintf("after the fault at %s (%s) was over: %v", f.Begin.Round(time.Millisecond), f.What, err))
			}
			cancel()
		}
		r.faults = append(r.faults, f)
		for _, i := range slices.Concat(harm.Silenced, harm.Excused) {
			r.silent[i] += f.Recovered - f.Begin
		}
	}
}

func (r *run) pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// await has a fault last until those that have to go on do, or until it is clear that they do not: a busy machine takes longer for an election
// than some faults are held.
func (r *run) await(ctx context.Context, done time.Duration, running []int) {
	limit, cancel := context.WithTimeout(ctx, done+goOn-r.recorder.Now())
	defer cancel()
	_ = harness.Poll(limit, func() error {
		n := r.recorder.OKs(done + settle)
		for _, i := range running {
			if n[i] == 0 {
				return errors.New(harness.PeerName(i))
			}
		}
		return nil
	})
}

// bite looks whether the fault did what it should: who was silenced has answered nothing that was asked after it had set in. Those that have
// to go on did.
func (r *run) bite(f *report.Fault, harm nemesis.Harm) {
	from := f.Done + settle
	if f.End <= from {
		return
	}
	n := r.recorder.OKs(from)
	for _, i := range harm.Silenced {
		if n[i] > 0 {
			r.problems = append(r.problems, fmt.Sprintf("%s, but %s answered %d operations meanwhile: it did not bite", f.What, harness.PeerName(i), n[i]))
		}
	}
	for _, i := range harm.Running {
		if n[i] == 0 {
			r.broken = append(r.broken, fmt.Sprintf("%s, and %s answered nothing from %s to %s", f.What, harness.PeerName(i), from.Round(time.Millisecond), f.End.Round(time.Millisecond)))
		}
	}
}

// recovered waits until every peer answers what was asked after a moment, changes too.
func (r *run) recovered(ctx context.Context, since time.Duration) error {
	limit, cancel := context.WithTimeout(ctx, recover)
	defer cancel()
	return harness.Poll(limit, func() error {
		n, changes := r.recorder.OKs(since), r.recorder.Changes(since)
		for i := history.Anybody; i < r.target.Peers(); i++ {
			if n[i] < 5 || changes[i] < 1 {
				return fmt.Errorf("peer %d answered %d operations, of which %d were changes", i, n[i], changes[i])
			}
		}
		return nil
	})
}

// audited looks whether the audit log of each peer is whole, and goes as far as the cluster has seen it.
func (r *run) audited(ctx context.Context) {
	var status client.Status
	if err := harness.Poll(ctx, func() (err error) {
		limit, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		status, err = r.target.Operator.Status(limit)
		return err
	}); err != nil {
		r.problems = append(r.problems, fmt.Sprintf("what the cluster has seen of the audit logs is unknown: %v", err))
		return
	}
	anchors := map[string]string{}
	for _, p := range status.Peers {
		anchors[p.ID] = p.AuditAnchor
	}
	for i := range r.target.Peers() {
		anchor, err := audit.ParseAnchor(anchors[harness.PeerName(i)])
		if r.target.Unlogged[i] {
			continue
		}
		if err != nil {
			r.problems = append(r.problems, fmt.Sprintf("what the cluster has seen of the audit log of %s is unknown: %v", harness.PeerName(i), err))
			continue
		}
		limit, cancel := context.WithTimeout(ctx, 3*time.Second)
		err = harness.Poll(limit, func() error { // it is being written: a file may have only just begun
			report, err := audit.Verify(filepath.Join(r.target.DataDir(i), "audit"), &anchor)
			if err == nil && len(report.Findings) > 0 {
				err = fmt.Errorf("%v", report.Findings)
			}
			return err
		})
		cancel()
		if err != nil {
			r.broken = append(r.broken, fmt.Sprintf("the audit log of %s: %v", harness.PeerName(i), err))
		}
	}
}

// judge ends the load, takes a last look and has everything checked. The peers do not run any more when it returns.
func (r *run) judge(ctx context.Context, l *loading) *report.Run {
	length := r.recorder.Now()
	l.stop()
	l.wait.Wait()
	var wait sync.WaitGroup
	last, end := context.WithTimeout(ctx, recover)
	defer end()
	for _, final := range l.finals {
		wait.Go(func() { final(last) })
	}
	wait.Wait()
	limit, cancel := context.WithTimeout(ctx, recover)
	defer cancel()
	err := harness.Poll(limit, func() error {
		err := r.target.Whole(limit, r.target.Operator)
		if errors.Is(err, harness.ErrDiverged) {
			cancel()
		}
		return err
	})
	look, over := context.WithTimeout(ctx, recover) // limit may be used up
	defer over()
	applied := uint64(0) // by all; unknown when they are not whole
	if status, failed := r.target.Operator.Status(look); failed != nil {
		r.problems = append(r.problems, fmt.Sprintf("the status at the end is unknown: %v", failed))
	} else if err == nil {
		r.terms[1] = status.Term
		applied = slices.MinFunc(status.Peers, func(a, b client.PeerStatus) int { return cmp.Compare(a.AppliedIndex, b.AppliedIndex) }).AppliedIndex
	}
	if most := r.nemesis.MaxTerms(len(r.faults)); r.terms[1] > r.terms[0]+most {
		r.broken = append(r.broken, fmt.Sprintf("the term went from %d to %d in %d faults, by more than %d", r.terms[0], r.terms[1], len(r.faults), most))
	}
	r.audited(look)
	ops := r.recorder.Ops()
	out := &report.Run{Name: r.cell.Name(), Nemesis: r.cell.Nemesis, Seed: r.cell.Seed, Peers: r.target.Peers(), Length: length, Build: revision, Config: r.cell.config(), When: time.Now().UTC(),
		Faults: r.faults, Lags: r.lags, Invalid: r.problems, Ops: ops, Rows: rowsOf(r.cell.Nemesis), Terms: r.terms}
	out.Violations = append(out.Violations, r.broken...)
	if err != nil {
		out.Violations = append(out.Violations, "at the end: "+err.Error())
	}
	note := func(name string, result check.Result) {
		for _, v := range result.Violations {
			out.Violations = append(out.Violations, name+": "+result.Checker+": "+v)
		}
		if result.Undecided != "" {
			out.Invalid = append(out.Invalid, name+": "+result.Checker+": "+result.Undecided)
		}
		if result.Drawing != nil {
			out.Drawings = append(out.Drawings, report.Drawing{Name: name, HTML: string(result.Drawing)})
		}
	}
	for _, w := range l.workloads {
		seen := []string{w.Name}
		if w.Operators {
			seen = append(seen, nemesis.Operator)
		}
		for _, judge := range w.Check {
			note(w.Name, judge(history.Of(ops, seen...)))
		}
		note(w.Name, check.Enough(history.Of(ops, w.Name), w.Kinds, w.Final, r.target.Peers()))
	}
	note("all", check.Sealed(ops))
	note("all", check.Indices(ops))
	if !r.mixed {
		note("all", check.Refusals(ops))
	}
	answered := map[int]int{}
	for _, op := range ops {
		if op.Outcome == history.OK {
			answered[op.Peer]++
		}
	}
	for i := range r.target.Peers() {
		if want := int((length - r.silent[i]).Seconds() * least); answered[i] < want {
			out.Invalid = append(out.Invalid, fmt.Sprintf("%s answered %d operations; fewer than %d mean nothing", harness.PeerName(i), answered[i], want))
		}
	}
	if len(r.faults) == 0 && r.cell.Nemesis != "none" {
		out.Invalid = append(out.Invalid, "no fault was done")
	}
	switch same := r.target.SameLogs(applied); {
	case errors.Is(same, harness.ErrLogsDiffer):
		out.Violations = append(out.Violations, "at the end: "+same.Error())
	case same != nil:
		out.Invalid = append(out.Invalid, "the logs cannot be compared: "+same.Error())
	}
	var audits []string
	for i := range r.target.Peers() {
		audits = append(audits, filepath.Join(r.target.DataDir(i), "audit"))
	}
	note("all", check.Audited(ops, r.target.Unlogged, audits...))
	note("all", check.Crashes(filepath.Join(r.dir, "logs")))
	note("all", check.Plaintext([]string{workload.NameMark, workload.ValueMark}, r.dir))
	for i := range r.target.Peers() {
		size := int64(-1) // there is none
		if info, err := os.Stat(filepath.Join(r.target.DataDir(i), "raft", "log.db")); err == nil {
			size = info.Size()
		}
		if size > maxLogBytes {
			out.Violations = append(out.Violations, fmt.Sprintf("the log of %s has %d bytes, more than %d", harness.PeerName(i), size, maxLogBytes))
		}
		out.LogBytes = append(out.LogBytes, size)
	}
	out.Decide()
	return out
}

// revision names the code of this program and of the peers, which are built together: see the Makefile.
var revision = "unknown"
