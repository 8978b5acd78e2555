package fsm

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// LevelOf is the lowest level that has all that a command uses.
func LevelOf(c *fsmpb.Command) uint32 {
	switch op := c.Op.(type) {
	case *fsmpb.Command_RaiseLevel:
		return op.RaiseLevel.GetLevel()
	case *fsmpb.Command_ReplaceKeyring, *fsmpb.Command_Reseal, *fsmpb.Command_AbandonShareSet:
		return 2
	case *fsmpb.Command_RecordDrill, *fsmpb.Command_BeginRestore, *fsmpb.Command_RestoreChunk, *fsmpb.Command_CommitRestore, *fsmpb.Command_AbandonRestore:
		return 3
	case *fsmpb.Command_PutSettings:
		if op.PutSettings.GetSettings().GetArchive() != nil {
			return 3
		}
	case *fsmpb.Command_CommitShareSet:
		if op.CommitShareSet.GetIncarnation() != 0 {
			return 2
		}
	}
	return FirstLevel
}

// Encode marshals a command for proposing; a level of 0 is set to LevelOf. The
// only error is a name that is not UTF-8.
func Encode(c *fsmpb.Command) ([]byte, error) {
	if c.Level == 0 {
		c.Level = LevelOf(c)
	}
	return proto.Marshal(c)
}

// DecodeResult reads what Apply returned for one command.
func DecodeResult(b []byte) (*fsmpb.Result, error) {
	r := new(fsmpb.Result)
	if err := proto.Unmarshal(b, r); err != nil {
		return nil, err
	}
	return r, nil
}

func encodeResult(r *fsmpb.Result) []byte {
	b, err := proto.Marshal(r)
	if err != nil {
		// Marshal fails only for strings that are not UTF-8, and the one string
		// in a result is a constant of this package.
		panic("fsm: result not encodable: " + err.Error())
	}
	return b
}

// applier applies the commands of one entry to the state.
type applier struct {
	*state
	hash    *hasher
	changes *changes
	time    int64 // of the command that is applied
}

// command applies one command and returns its result. The order of the checks
// is part of the format level.
func (a *applier) command(b []byte, s shape) *fsmpb.Result {
	c, bad := decode(b, s)
	if bad == "" && c.WriteId != nil && c.WriteId.Index >= a.index {
		// Such an id would stay above the floor after its result was forgotten.
		bad = "write id carries an index that was not published yet"
	}
	if bad != "" {
		return a.reject(nil, fsmpb.Code_INVALID, bad)
	}
	if _, ok := c.Op.(*fsmpb.Command_Found); !ok && len(a.clusterID) == 0 {
		return a.reject(c, fsmpb.Code_NOT_FOUNDED, "")
	}
	if _, ok := c.Op.(*fsmpb.Command_RaiseLevel); !ok && c.Level > a.level {
		return a.reject(c, fsmpb.Code_LEVEL_TOO_LOW, "")
	}
	if w := c.WriteId; w != nil {
		if e, ok := a.window.byID[[16]byte(w.Id)]; ok {
			if !bytes.Equal(e.requestBytes(), w.Request) {
				return a.reject(c, fsmpb.Code_WRITE_ID_REUSED, "")
			}
			return e.result()
		}
		if w.Index < a.windowFloor {
			return a.reject(c, fsmpb.Code_WINDOW_EXPIRED, "")
		}
	}
	if !a.stands(c.Basis) {
		return a.reject(c, fsmpb.Code_BASIS_MOVED, "")
	}
	r := a.do(c)
	if r.Code != fsmpb.Code_OK {
		rejected := a.reject(c, r.Code, r.Reason)
		rejected.Operation = r.Operation
		return rejected
	}
	r.Index = a.index
	if w := c.WriteId; w != nil {
		e := &windowEntry{id: [16]byte(w.Id), index: w.Index, requestLen: uint8(len(w.Request)),
			applied: a.index, version: r.Version, revision: r.Revision, versions: r.Versions, operations: r.Operations}
		copy(e.request[:], w.Request)
		a.remember(a.hash, e)
	}
	return r
}

// stands reports whether what the proposer decided on still holds.
func (a *applier) stands(b *fsmpb.Basis) bool {
	switch {
	case b == nil:
		return true
	case b.PolicyRevision != nil && *b.PolicyRevision != a.policyRevision,
		b.SealGeneration != nil && *b.SealGeneration != a.seal.Generation,
		b.DataEpoch != nil && !bytes.Equal(b.DataEpoch, a.dataEpoch()):
		return false
	}
	return true
}

// dataEpoch returns the id of the key epoch that secrets are sealed under.
func (a *applier) dataEpoch() []byte {
	for _, e := range a.seal.Epochs {
		if e.Purpose == "data" {
			return e.Id
		}
	}
	return nil
}

// do checks the rest and changes the state. A result that is not OK means that
// nothing was changed; reject completes it.
func (a *applier) do(c *fsmpb.Command) *fsmpb.Result {
	now := c.TimeUnixNano
	a.time = now
	switch op := c.Op.(type) {
	case *fsmpb.Command_Found:
		return a.found(op.Found)
	case *fsmpb.Command_PutSettings:
		return a.putSettings(op.PutSettings)
	case *fsmpb.Command_BeginShareSet:
		return a.beginShareSet(op.BeginShareSet)
	case *fsmpb.Command_CommitShareSet:
		return a.commitShareSet(op.CommitShareSet)
	case *fsmpb.Command_AbandonShareSet:
		return a.abandonShareSet(op.AbandonShareSet)
	case *fsmpb.Command_SetSeal:
		return a.setSeal(op.SetSeal)
	case *fsmpb.Command_AnchorAudit:
		return a.anchorAudit(op.AnchorAudit, now)
	case *fsmpb.Command_RaiseLevel:
		return a.raiseLevel(op.RaiseLevel)
	case *fsmpb.Command_AbandonRestore:
		return a.abandonRestore(op.AbandonRestore)
	}
	// The rest changes secrets, policies and keys: not while sealed by an operator.
	if a.seal.Sealed {
		return refuse(fsmpb.Code_SEALED, "")
	}
	switch op := c.Op.(type) {
	case *fsmpb.Command_PutSecret:
		return a.carry(a.planPut(op.PutSecret, now))
	case *fsmpb.Command_DeleteVersions:
		d := op.DeleteVersions
		return a.carry(a.planVersions(d.Token, d.ExpectedRevision, now, deletion(d.Versions)))
	case *fsmpb.Command_UndeleteVersions:
		d := op.UndeleteVersions
		return a.carry(a.planVersions(d.Token, d.ExpectedRevision, now, undeletion(d.Versions)))
	case *fsmpb.Command_DestroyVersions:
		d := op.DestroyVersions
		return a.carry(a.planVersions(d.Token, d.ExpectedRevision, now, destruction(d.Versions)))
	case *fsmpb.Command_PurgeSecret:
		return a.carry(a.planPurge(op.PurgeSecret))
	case *fsmpb.Command_Transaction:
		return a.transaction(op.Transaction, now)
	case *fsmpb.Command_PutPolicy:
		return a.putPolicy(op.PutPolicy, now)
	case *fsmpb.Command_DeletePolicy:
		return a.deletePolicy(op.DeletePolicy)
	case *fsmpb.Command_ReplaceKeyring:
		return a.replaceKeyring(op.ReplaceKeyring)
	case *fsmpb.Command_Reseal:
		return a.resealRecords(op.Reseal)
	case *fsmpb.Command_RecordDrill:
		return a.recordDrill(op.RecordDrill.Drill, now)
	case *fsmpb.Command_BeginRestore:
		return a.beginRestore(op.BeginRestore)
	case *fsmpb.Command_RestoreChunk:
		return a.restoreChunk(op.RestoreChunk)
	case *fsmpb.Command_CommitRestore:
		return a.commitRestore(op.CommitRestore)
	}
	return refuse(fsmpb.Code_INVALID, "no operation") // decode lets none through
}

func refuse(code fsmpb.Code, reason string) *fsmpb.Result {
	return &fsmpb.Result{Code: code, Reason: reason}
}

// revise gives out the next revision. One counter serves all records, and it
// moves with each change instead of with each entry: two changes of one record
// in one entry must not look like one.
func (a *applier) revise() uint64 {
	a.revision++
	return a.revision
}

// reject completes a rejection with what the writer needs to decide again. The
// command is nil when it could not be read.
func (a *applier) reject(c *fsmpb.Command, code fsmpb.Code, reason string) *fsmpb.Result {
	cur := &fsmpb.Current{
		PolicyRevision:   a.policyRevision,
		SealGeneration:   a.seal.Generation,
		Sealed:           a.seal.Sealed,
		DataEpoch:        a.dataEpoch(),
		PendingSet:       a.seal.Pending.GetId(),
		CommittedSet:     a.seal.Committed.GetId(),
		SettingsRevision: a.settingsRevision,
		WindowFloor:      a.windowFloor,
		ClusterId:        a.clusterID,
		Incarnation:      a.incarnation,
	}
	if a.staging != nil {
		cur.StagedNext = a.staging.next
	}
	switch op := c.GetOp().(type) {
	case *fsmpb.Command_PutSecret:
		a.currentSecret(cur, op.PutSecret.Token)
	case *fsmpb.Command_DeleteVersions:
		a.currentSecret(cur, op.DeleteVersions.Token)
	case *fsmpb.Command_UndeleteVersions:
		a.currentSecret(cur, op.UndeleteVersions.Token)
	case *fsmpb.Command_DestroyVersions:
		a.currentSecret(cur, op.DestroyVersions.Token)
	case *fsmpb.Command_PurgeSecret:
		a.currentSecret(cur, op.PurgeSecret.Token)
	case *fsmpb.Command_Transaction:
		for _, o := range op.Transaction.Operations {
			var one fsmpb.Current
			a.currentSecret(&one, operationToken(o))
			cur.Secrets = append(cur.Secrets, &fsmpb.CurrentSecret{
				Revision: one.SecretRevision, CurrentVersion: one.CurrentVersion, NextVersion: one.NextVersion})
		}
	case *fsmpb.Command_PutPolicy:
		a.currentPolicy(cur, op.PutPolicy.Token)
	case *fsmpb.Command_DeletePolicy:
		a.currentPolicy(cur, op.DeletePolicy.Token)
	case *fsmpb.Command_AnchorAudit:
		if old, ok := a.anchors.Get(&fsmpb.Anchor{Peer: op.AnchorAudit.Peer}); ok {
			cur.AnchorCount = old.Count
		}
	}
	return &fsmpb.Result{Code: code, Index: a.index, Reason: reason, Current: cur}
}

func (a *applier) currentSecret(cur *fsmpb.Current, token []byte) {
	cur.NextVersion = 1
	if r, ok := a.secrets.get(Token(token)); ok {
		cur.SecretRevision = r.pb.Revision
		cur.CurrentVersion = r.pb.Current
		cur.NextVersion = NextVersion(&r.pb)
	}
}

func (a *applier) currentPolicy(cur *fsmpb.Current, token []byte) {
	if r, ok := a.policies.get(Token(token)); ok {
		cur.PolicyBodyRevision = r.pb.Revision
	}
}
