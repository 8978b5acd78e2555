package cli

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/snapshot"
)

// shownObject is the document of 'snapshot show'.
type shownObject struct {
	Name        string    `json:"name"`
	Kind        string    `json:"kind"` // snapshot, log, keyring, claim or audit
	Cluster     string    `json:"cluster"`
	Incarnation uint64    `json:"incarnation"`
	First       uint64    `json:"first,omitempty"` // of a segment, or number of the first audit record
	Index       uint64    `json:"index"`           // the last that is in it, or number of the last audit record
	Term        uint64    `json:"term"`
	Level       uint32    `json:"level,omitempty"`
	Peer        string    `json:"peer"`
	Created     time.Time `json:"created"`
	Modified    time.Time `json:"modified"` // by the store
	Size        int64     `json:"size"`
	DataHash    string    `json:"dataHash,omitempty"`
	StateHash   string    `json:"stateHash,omitempty"`
	// Chain is how it is restored, and what goes on from it; of a snapshot or a segment.
	Chain *shownChain `json:"chain,omitempty"`
	// Keyring opens it; null when there is none.
	Keyring *shownKeyring `json:"keyring"`
}

type shownChain struct {
	Snapshot    string    `json:"snapshot"`    // that a restore of it begins with
	Before      int       `json:"before"`      // segments from there to this object, itself included
	After       int       `json:"after"`       // segments that go on from it
	Through     uint64    `json:"through"`     // index that they lead to
	ThroughTime time.Time `json:"throughTime"` // when the last of them was made
	Bytes       int64     `json:"bytes"`       // of those after it
	Gap         string    `json:"gap,omitempty"`
}

type shownKeyring struct {
	Name      string `json:"name"`
	ShareSet  string `json:"shareSet"`
	Shares    int    `json:"shares"`
	Threshold int    `json:"threshold"`
}

func showSnapshot(c *cli.Context) error {
	if err := errors.Join(checkFormat(c), arguments(c, 1, 1)); err != nil {
		return err
	}
	r, err := readingOf(c, "cluster")
	if err != nil {
		return err
	}
	list, err := r.Archive.List(c.Context, r.Cluster)
	if err != nil {
		return remote(err)
	}
	item, err := findObject(list, c.Args().First(), c.Uint64("incarnation"))
	if err != nil {
		return err
	}
	h, err := r.Archive.Head(c.Context, item)
	if err != nil {
		return remote(advised(err))
	}
	document := shownObject{Name: item.Name, Kind: string(item.Kind), Cluster: hex.EncodeToString(h.Cluster[:]), Incarnation: h.Incarnation, First: h.First, Index: h.Last, Term: h.Term, Level: h.Level,
		Peer: h.Peer, Created: h.Created, Modified: item.Modified, Size: item.Size}
	if item.Kind == snapshot.Snapshot {
		document.DataHash, document.StateHash = hex.EncodeToString(h.Data[:]), hex.EncodeToString(h.All[:])
	}
	list = ofCluster(list, item.Cluster)
	if item.Kind == snapshot.Snapshot || item.Kind == snapshot.Segment {
		chain := chainOf(list, item)
		last := h.Created
		if at := lastOf(list, item, chain.Through); at.Name != "" {
			if head, err := r.Archive.Head(c.Context, at); err == nil {
				last = head.Created
			}
		}
		chain.ThroughTime = last
		document.Chain = &chain
	}
	r.Cluster = item.Cluster
	if st, err := r.Needs(c.Context); err == nil {
		newest, _ := snapshot.NewestKeyring(list)
		document.Keyring = &shownKeyring{newest.Name, hex.EncodeToString(st.Committed.ID[:]), st.Committed.Shares, st.Committed.Threshold}
	} else if !errors.Is(err, snapshot.ErrNoKeyring) {
		return remote(advised(err))
	}
	return show(c, document, func(w io.Writer) { document.print(w) })
}

func ofCluster(list []snapshot.Item, cluster [16]byte) (only []snapshot.Item) {
	for _, i := range list {
		if i.Cluster == cluster {
			only = append(only, i)
		}
	}
	return only
}

// findObject finds an object by its name, or its end, or by an index: the snapshot at it, else the segment that has it.
func findObject(list []snapshot.Item, what string, incarnation uint64) (found snapshot.Item, err error) {
	index, err := strconv.ParseUint(what, 10, 64)
	byIndex := err == nil
	clusters := map[[16]byte]bool{}
	for _, i := range list {
		clusters[i.Cluster] = true
		if i.Name == what {
			return i, nil
		}
		switch {
		case incarnation != 0 && i.Incarnation != incarnation, byIndex && incarnation == 0 && i.Incarnation < found.Incarnation:
		case byIndex && i.Kind == snapshot.Snapshot && i.Last == index,
			byIndex && i.Kind == snapshot.Segment && i.First <= index && index <= i.Last && (found.Kind != snapshot.Snapshot || found.Incarnation < i.Incarnation):
			found = i
		case !byIndex && strings.HasSuffix(i.Name, "/"+what):
			if found.Name != "" {
				return found, usage("several objects are called so; give the whole name, as %s", i.Name)
			}
			found = i
		}
	}
	switch {
	case found.Name == "":
		return found, remote(hinted{fmt.Errorf("%w: nothing in the archive is %q, or has that index", snapshot.ErrNotFound, what), "'spikectl snapshot list' shows the snapshots, and how far the log goes on from each"})
	case byIndex && len(clusters) > 1:
		return found, usage("the archive holds more than one cluster: name the one that is meant with --cluster")
	}
	return found, nil
}

// chainOf finds the way to an object and on from it.
func chainOf(list []snapshot.Item, item snapshot.Item) (chain shownChain) {
	plan, err := snapshot.MakePlan(list, item.Incarnation, item.Last)
	if item.Kind == snapshot.Snapshot {
		plan = snapshot.Plan{Snapshot: item, Last: item.Last}
	}
	chain.Snapshot, chain.Before = plan.Snapshot.Name, len(plan.Segments)
	if err != nil {
		chain.Gap = err.Error()
	}
	from := item
	from.Kind = snapshot.Snapshot // what goes on from a segment goes on as from a snapshot at its end
	rest := []snapshot.Item{from}
	for _, i := range list {
		if i.Kind == snapshot.Segment {
			rest = append(rest, i)
		}
	}
	onward, err := snapshot.MakePlan(rest, item.Incarnation, 0)
	if err != nil {
		chain.Gap = err.Error()
	}
	chain.After, chain.Through = len(onward.Segments), onward.Last
	for _, i := range onward.Segments {
		chain.Bytes += i.Size
	}
	return chain
}

// lastOf is the segment that ends a chain; none when nothing goes on from item.
func lastOf(list []snapshot.Item, item snapshot.Item, through uint64) (last snapshot.Item) {
	for _, i := range list {
		if i.Kind == snapshot.Segment && i.Incarnation == item.Incarnation && i.Last == through && through > item.Last {
			last = i
		}
	}
	return last
}

func (d shownObject) print(w io.Writer) {
	fmt.Fprintln(w, d.Name)
	rows := [][]string{{"  cluster", fmt.Sprintf("%s, incarnation %d", d.Cluster, d.Incarnation)}}
	switch {
	case d.Kind == string(snapshot.Audit):
		rows = append(rows, []string{"  audit log", fmt.Sprintf("of %s, records %d to %d", d.Peer, d.First, d.Index)})
	case d.First > 0:
		rows = append(rows, []string{"  log", fmt.Sprintf("from index %d to %d, term %d", d.First, d.Index, d.Term)})
	default:
		rows = append(rows, []string{"  state", fmt.Sprintf("after index %d, term %d", d.Index, d.Term)})
	}
	rows = append(rows, []string{"  made", fmt.Sprintf("by %s at %s; stored %s; %s", d.Peer, shortTime(d.Created), shortTime(d.Modified), bytesText(uint64(d.Size)))})
	if d.DataHash != "" {
		rows = append(rows, []string{"  format level", strconv.FormatUint(uint64(d.Level), 10)}, []string{"  data hash", d.DataHash}, []string{"  state hash", d.StateHash})
	}
	if c := d.Chain; c != nil {
		if d.First > 0 {
			rows = append(rows, []string{"  leads to it", fmt.Sprintf("%s and %s", orDash(c.Snapshot), count(c.Before, "segment"))})
		}
		rows = append(rows, []string{"  goes on", fmt.Sprintf("with %s (%s) to index %d, %s", count(c.After, "segment"), bytesText(uint64(c.Bytes)), c.Through, shortTime(c.ThroughTime))})
		if c.Gap != "" {
			rows = append(rows, []string{"  GAP", c.Gap})
		}
	}
	opened := "nothing: the archive has no keyring"
	if k := d.Keyring; k != nil {
		opened = fmt.Sprintf("%s; any %d of the %d shares of the set %s", k.Name, k.Threshold, k.Shares, k.ShareSet)
	}
	table(w, append(rows, []string{"  opened by", opened})...)
}
