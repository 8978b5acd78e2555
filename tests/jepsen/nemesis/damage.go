package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// damages are of files of one peer, which is dead meanwhile. When it starts it
// either says that its data is damaged and ends, so that an operator gives it new
// data, or it has all that it had.
func damages() (list []Nemesis) {
	for _, kind := range []struct{ name, what, files string }{
		{"log", "the Raft log, with term and vote", "raft/log.db"},
		{"snapshot", "a snapshot", "raft/snapshots/*/*"},
		{"marker", "the mark of which cluster a peer is of", "raft/marker"},
		{"audit", "an audit file", "audit/*"},
	} {
		list = append(list, Nemesis{Name: "damage-" + kind.name, About: "bits flipped in " + kind.what + ", or its end cut off, while a voter is dead",
			Prepare: func(o *harness.Options) {
				o.Args = append(o.Args, "--snapshot-bytes", "32768", "--audit-file-bytes", "262144") // so that there are some
				o.Supervise = true                                                                   // a peer that is sent a snapshot of before ends, and goes on after a restart
			},
			Do: func(ctx context.Context, t *Target) (Harm, error) { return t.damaged(ctx, kind.files) }})
	}
	return list
}

func (t *Target) damaged(ctx context.Context, files string) (Harm, error) {
	victim := t.voters()[0]
	there := func() (found []string, err error) {
		err = harness.Poll(ctx, func() error {
			found, err = filepath.Glob(filepath.Join(t.DataDir(victim), files))
			found = slices.DeleteFunc(found, unfinished)
			if err == nil && len(found) == 0 {
				err = fmt.Errorf("%s has no %s", harness.PeerName(victim), files)
			}
			return err
		})
		return found, err
	}
	if _, err := there(); err != nil { // a snapshot takes a while to come
		return Harm{}, err
	}
	if err := down(t.Peer(victim)); err != nil {
		return Harm{}, err
	}
	undo := Harm{Undo: func(ctx context.Context) error { return t.mend(ctx, victim, files) }}
	raft := filepath.Join(t.DataDir(victim), "raft")
	before, err := inspect(ctx, raft)
	if err != nil {
		return undo, err
	}
	found, err := there()
	if err != nil {
		return undo, err
	}
	file := found[t.Random.IntN(len(found))]
	if filepath.Dir(files) == "audit" {
		t.Unlogged[victim] = true
	}
	how, err := damage(file, t.Random)
	if err != nil {
		return undo, err
	}
	name, _ := filepath.Rel(t.DataDir(victim), file)
	harm := Harm{What: fmt.Sprintf("%s of %s: %s", name, harness.PeerName(victim), how), Running: t.peers(victim), Undo: undo.Undo}
	after, refused := inspect(ctx, raft)
	since := t.Recorder.Now()
	if err := up(t.Peer(victim)); err != nil {
		return undo, err
	}
	refuses, err := t.refuses(ctx, victim, since)
	if err != nil {
		return harm, err
	}
	verdict := "it has what it had"
	if refuses {
		verdict = "it refused"
		harm.Silenced = []int{victim}
	}
	harm.What += ", " + verdict
	harm.Check = func(context.Context) error {
		if now := t.Peer(victim).Info(); refused == nil && before.Newer(after) {
			return fmt.Errorf("%s had entry %d of term %d and forgot it: its log ends at %d of term %d", harness.PeerName(victim), before.LastIndex, before.LastTerm, after.LastIndex, after.LastTerm)
		} else if now.State == process.Died && now.Detail != "exit status 65" {
			return fmt.Errorf("%s ended with %s: a supervisor would start it again for ever", harness.PeerName(victim), now.Detail)
		}
		return nil
	}
	return harm, nil
}

// unfinished files are those of a snapshot that was being written: they may be empty, and no peer reads them.
func unfinished(file string) bool { return filepath.Ext(filepath.Dir(file)) == ".tmp" }

// refuses waits until a peer that was started at a moment or later has ended of its own accord, or has answered.
func (t *Target) refuses(ctx context.Context, peer int, since time.Duration) (ended bool, err error) {
	err = harness.Poll(ctx, func() error {
		ended = t.Peer(peer).Info().State == process.Died
		if ended || t.Recorder.OKs(since)[peer] > 0 {
			return nil
		}
		return fmt.Errorf("%s neither ends nor answers", harness.PeerName(peer))
	})
	return ended, err
}

// inspect says what a copy of Raft's files holds: opening them writes, and hides what was written last.
func inspect(ctx context.Context, raft string) (cluster.Report, error) {
	dir, err := os.MkdirTemp("", "jepsen")
	if err != nil {
		return cluster.Report{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, os.DirFS(raft)); err != nil {
		return cluster.Report{}, err
	}
	return cluster.InspectData(ctx, dir)
}

// damage flips bits in a file, or cuts it off, and says which.
func damage(file string, random *rand.Rand) (how string, err error) {
	data, err := os.ReadFile(file)
	if err != nil || len(data) == 0 {
		return "", errors.Join(err, fmt.Errorf("%s is empty", file))
	}
	switch at := random.IntN(len(data)); random.IntN(4) {
	case 0:
		data, how = data[:at], fmt.Sprintf("cut off at %d of %d", at, len(data))
	case 1:
		at = at / 512 * 512
		clear(data[at:min(at+512, len(data))])
		how = fmt.Sprintf("zeros at %d", at)
	case 2: // in what the two heads of a database say of the rest of it
		at = (random.IntN(2)*os.Getpagesize() + 16 + random.IntN(64)) % len(data)
		fallthrough
	default:
		bits := byte(1 + random.IntN(255))
		data[at] ^= bits
		how = fmt.Sprintf("bits %08b at %d flipped", bits, at)
	}
	return how, os.WriteFile(file, data, 0o600)
}

// mend does what the operator's manual says: a peer that does not start gets new data, from the others; an audit log that
// cannot be continued is moved away.
func (t *Target) mend(ctx context.Context, victim int, files string) error {
	p := t.Peer(victim)
	if _, _, runs := p.Running(); runs { // and another harm that was undone has just started it, perhaps
		if refuses, err := t.refuses(ctx, victim, t.Recorder.Now()); err != nil || !refuses {
			return err
		}
	}
	if filepath.Dir(files) == "audit" {
		away := filepath.Join(t.DataDir(victim), fmt.Sprintf("audit.damaged-%d", t.Recorder.Now()/time.Millisecond))
		return errors.Join(p.KillAnd(func() error { return os.Rename(filepath.Join(t.DataDir(victim), "audit"), away) }), up(p))
	}
	if err := harness.Poll(ctx, func() error { return t.Operator.RemoveMember(ctx, harness.PeerName(victim)) }); err != nil {
		return err
	}
	if err := p.KillAnd(func() error { return os.RemoveAll(filepath.Join(t.DataDir(victim), "raft")) }); err != nil {
		return err
	}
	return errors.Join(up(p), t.complete(ctx))
}
