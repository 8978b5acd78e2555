package fsm

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// Bounds on what a command may carry. They decide results and so belong to the
// format level.
const (
	MaxVersions     = 1000            // of one secret, and numbers in one command
	MaxName         = 4<<10 + 256     // bytes of a sealed name
	MaxKeyID        = 64              // bytes of a key or epoch id
	MaxPolicyBody   = 64 << 10        // bytes of a sealed policy
	MaxKeyring      = 1 << 20         // bytes of a sealed keyring
	MaxShares       = 255             // in a share set
	MaxPeer         = 255             // bytes of a peer's or keeper's name, or of a file's
	MaxAnchors      = 1024            // peers that ever anchored
	MaxEpochs       = 64              // purposes in a keyring
	MaxSecretValue  = 16 << 20        // bytes, however the settings are
	MaxOperations   = 64              // of one transaction
	MaxTransaction  = 1<<20 + 512<<10 // bytes of a transaction's command: 1 MiB of values, their names and overhead
	MaxResealed     = 1024            // values and policies in one Reseal
	MaxWindow       = 1 << 22         // entries, however the settings are
	maxWindowBytes  = 1 << 30
	minWindowBytes  = 64 << 10 // so that one entry always fits
	maxSmallCommand = 256 << 10
)

// shape is what is known of a command before anything is allocated for it.
type shape struct {
	level uint32
	bad   string // why it is invalid; empty: go on and decode
}

// scan reads the top level of a command. The level of a well-formed command is
// found whatever else is in it: a newer build may have put anything there.
func scan(b []byte) shape {
	var s shape
	var seen uint64
	limit, ops, since := 0, 0, uint32(FirstLevel) // since: level that has the operation
	for rest := b; len(rest) > 0; {
		num, typ, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return shape{bad: "not a command"}
		}
		rest = rest[n:]
		n = protowire.ConsumeFieldValue(num, typ, rest)
		if n < 0 {
			return shape{bad: "not a command"}
		}
		if num == 1 && typ == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(rest)
			s.level = max(s.level, uint32(min(v, math.MaxUint32)))
		}
		rest = rest[n:]
		want := protowire.BytesType
		switch {
		case num <= 2:
			want = protowire.VarintType
		case num <= 4:
		case operationSince(num) > 0:
			ops++
			since = max(since, operationSince(num))
			limit = maxSmallCommand
			switch num {
			case 17:
				limit += MaxSecretValue
			case 25, 31, 36:
				limit += MaxKeyring
			case 32:
				limit += MaxSecretValue
				if typ == protowire.BytesType {
					resealed, _ := protowire.ConsumeBytes(b[len(b)-len(rest)-n:])
					if bad := scanReseal(resealed); bad != "" && s.bad == "" {
						s.bad = bad
					}
				}
			case 35:
				limit += MaxSecretValue
				if typ == protowire.BytesType {
					chunk, _ := protowire.ConsumeBytes(b[len(b)-len(rest)-n:])
					if bad := scanChunk(chunk); bad != "" && s.bad == "" {
						s.bad = bad
					}
				}
			case 29:
				limit = MaxTransaction
				if typ == protowire.BytesType {
					operations, _ := protowire.ConsumeBytes(b[len(b)-len(rest)-n:])
					if bad := scanTransaction(operations); bad != "" && s.bad == "" {
						s.bad = bad
					}
				}
			}
		default:
			s.bad = "unknown field"
			continue
		}
		if typ != want {
			s.bad = "field of a wrong type"
		} else if seen&(1<<num) != 0 {
			s.bad = "field given twice"
		}
		seen |= 1 << num
	}
	switch {
	case s.bad != "":
	case s.level == 0:
		s.bad = "no format level"
	case s.level < since:
		s.bad = "unknown field"
	case ops != 1:
		s.bad = "not one operation"
	case len(b) > limit:
		s.bad = "command too long"
	}
	return s
}

// operationSince is the level that has the operation of a field number; 0: none has.
func operationSince(num protowire.Number) uint32 {
	switch {
	case num >= 16 && num <= 29:
		return FirstLevel
	case num >= 30 && num <= 33:
		return 2
	case num >= 34 && num <= 38:
		return 3
	}
	return 0
}

// scanTransaction counts operations before anything is allocated for them, and
// sees to it that each is one: what a decoder makes of several is not ours to say.
func scanTransaction(b []byte) string {
	operations := 0
	for rest := b; len(rest) > 0; operations++ {
		num, typ, n := protowire.ConsumeField(rest)
		if n < 0 || num != 1 || typ != protowire.BytesType {
			return "not a transaction"
		}
		_, _, tag := protowire.ConsumeTag(rest)
		operation, _ := protowire.ConsumeBytes(rest[tag:])
		num, typ, one := protowire.ConsumeField(operation)
		if one < 0 || one != len(operation) || num < 1 || num > 4 || typ != protowire.BytesType {
			return "not one operation each"
		}
		if operations == MaxOperations {
			return "too many operations"
		}
		rest = rest[n:]
	}
	if operations == 0 {
		return "no operations"
	}
	return ""
}

// scanReseal counts what is resealed before anything is allocated for it.
func scanReseal(b []byte) string {
	count := 0
	for rest := b; len(rest) > 0; count++ {
		num, typ, n := protowire.ConsumeField(rest)
		if n < 0 || num < 1 || num > 2 || typ != protowire.BytesType {
			return "not a reseal"
		}
		if count == MaxResealed {
			return "too much resealed at once"
		}
		rest = rest[n:]
	}
	if count == 0 {
		return "nothing to reseal"
	}
	return ""
}

// decode reads a command and checks everything that needs no state. A second
// return value says why it is invalid.
func decode(b []byte, s shape) (*fsmpb.Command, string) {
	if s.bad != "" {
		return nil, s.bad
	}
	c := new(fsmpb.Command)
	if err := proto.Unmarshal(b, c); err != nil {
		return nil, "not decodable"
	}
	if unknown(c.WriteId) || unknown(c.Basis) {
		return nil, "unknown field"
	}
	if w := c.WriteId; w != nil {
		if len(w.Id) != 16 {
			return nil, "write id is not 16 bytes"
		}
		if len(w.Request) > 32 {
			return nil, "request fingerprint over 32 bytes"
		}
	}
	if c.Basis != nil && len(c.Basis.DataEpoch) > MaxKeyID {
		return nil, "data epoch too long"
	}
	return c, checkOp(c)
}

// unknown reports whether a message carries fields that no level has.
// They are refused: ignoring them would let a newer build read more into the
// same command.
func unknown[M interface {
	comparable
	ProtoReflect() protoreflect.Message
}](m M) bool {
	var none M
	return m != none && len(m.ProtoReflect().GetUnknown()) > 0
}

func checkOp(c *fsmpb.Command) string {
	switch op := c.Op.(type) {
	case *fsmpb.Command_PutSecret:
		return checkPut(op.PutSecret)
	case *fsmpb.Command_DeleteVersions:
		return checkVersions(op.DeleteVersions.Token, op.DeleteVersions.Versions, unknown(op.DeleteVersions))
	case *fsmpb.Command_UndeleteVersions:
		return checkVersions(op.UndeleteVersions.Token, op.UndeleteVersions.Versions, unknown(op.UndeleteVersions))
	case *fsmpb.Command_DestroyVersions:
		if len(op.DestroyVersions.Versions) == 0 {
			return "no versions to destroy"
		}
		return checkVersions(op.DestroyVersions.Token, op.DestroyVersions.Versions, unknown(op.DestroyVersions))
	case *fsmpb.Command_PurgeSecret:
		return checkVersions(op.PurgeSecret.Token, nil, unknown(op.PurgeSecret))
	case *fsmpb.Command_Transaction:
		return checkTransaction(op.Transaction)
	case *fsmpb.Command_PutPolicy:
		if n := len(op.PutPolicy.Body); n == 0 || n > MaxPolicyBody {
			return "policy body empty or too long"
		}
		return checkVersions(op.PutPolicy.Token, nil, unknown(op.PutPolicy))
	case *fsmpb.Command_RaiseLevel:
		if unknown(op.RaiseLevel) {
			return "unknown field"
		}
		if op.RaiseLevel.Level != c.Level {
			return "not the level that it raises to"
		}
		return ""
	case *fsmpb.Command_DeletePolicy:
		return checkVersions(op.DeletePolicy.Token, nil, unknown(op.DeletePolicy))
	case *fsmpb.Command_Found:
		if unknown(op.Found) {
			return "unknown field"
		}
		if !isID(op.Found.ClusterId) || op.Found.Incarnation == 0 {
			return "cluster id not 16 bytes, or no incarnation"
		}
		if op.Found.Settings.GetArchive() != nil && c.Level < 3 {
			return "unknown field"
		}
		_, bad := withDefaults(op.Found.Settings)
		return bad
	case *fsmpb.Command_PutSettings:
		if unknown(op.PutSettings) {
			return "unknown field"
		}
		if op.PutSettings.Settings.GetArchive() != nil && c.Level < 3 {
			return "unknown field" // as to builds that know no more than the levels before
		}
		_, bad := withDefaults(op.PutSettings.Settings)
		return bad
	case *fsmpb.Command_BeginShareSet:
		if unknown(op.BeginShareSet) {
			return "unknown field"
		}
		if n := len(op.BeginShareSet.Supersedes); n != 0 && n != 16 {
			return "superseded share set id not 16 bytes"
		}
		return checkShareSet(op.BeginShareSet.Set)
	case *fsmpb.Command_CommitShareSet:
		if op.CommitShareSet.Incarnation != 0 && c.Level == FirstLevel {
			return "unknown field" // as to builds that know no more than that level
		}
		return checkCommit(op.CommitShareSet)
	case *fsmpb.Command_AbandonShareSet:
		if unknown(op.AbandonShareSet) {
			return "unknown field"
		}
		if !isID(op.AbandonShareSet.Id) {
			return "share set id not 16 bytes"
		}
	case *fsmpb.Command_ReplaceKeyring:
		return checkReplace(op.ReplaceKeyring)
	case *fsmpb.Command_Reseal:
		return checkReseal(op.Reseal)
	case *fsmpb.Command_RecordDrill:
		if unknown(op.RecordDrill) {
			return "unknown field"
		}
		return checkDrill(op.RecordDrill.Drill)
	case *fsmpb.Command_BeginRestore:
		return checkBegin(op.BeginRestore)
	case *fsmpb.Command_RestoreChunk:
		return checkChunk(op.RestoreChunk)
	case *fsmpb.Command_CommitRestore:
		return checkCommitRestore(op.CommitRestore)
	case *fsmpb.Command_AbandonRestore:
		if unknown(op.AbandonRestore) {
			return "unknown field"
		}
		if !isID(op.AbandonRestore.Id) {
			return "id of a restore not 16 bytes"
		}
	case *fsmpb.Command_SetSeal:
		if unknown(op.SetSeal) {
			return "unknown field"
		}
	case *fsmpb.Command_AnchorAudit:
		a := op.AnchorAudit
		if unknown(a) {
			return "unknown field"
		}
		return checkAnchor(a.Peer, a.File, a.Head, a.Count, a.FirstCount)
	default:
		return "no operation"
	}
	return ""
}

func checkPut(p *fsmpb.PutSecret) string {
	switch {
	case unknown(p):
		return "unknown field"
	case len(p.Token) != len(Token{}):
		return "token is not 32 bytes"
	case len(p.PathKeyId) > MaxKeyID:
		return "path key id too long"
	case len(p.Name) > MaxName:
		return "name too long"
	case len(p.Value) == 0:
		return "empty value"
	case p.Version == 0:
		return "no version number"
	case p.MaxVersions > MaxVersions:
		return "too many versions to keep"
	}
	return ""
}

func checkTransaction(t *fsmpb.Transaction) string {
	if unknown(t) {
		return "unknown field"
	}
	named := make(map[Token]bool, len(t.Operations)) // looked up, never ranged over
	versions := 0
	for _, o := range t.Operations {
		bad := ""
		switch op := o.Op.(type) {
		case *fsmpb.Operation_PutSecret:
			bad = checkPut(op.PutSecret)
		case *fsmpb.Operation_DeleteVersions:
			versions += len(op.DeleteVersions.Versions)
			bad = checkVersions(op.DeleteVersions.Token, op.DeleteVersions.Versions, unknown(op.DeleteVersions))
		case *fsmpb.Operation_DestroyVersions:
			versions += len(op.DestroyVersions.Versions)
			if bad = checkVersions(op.DestroyVersions.Token, op.DestroyVersions.Versions, unknown(op.DestroyVersions)); bad == "" && len(op.DestroyVersions.Versions) == 0 {
				bad = "no versions to destroy"
			}
		case *fsmpb.Operation_PurgeSecret:
			bad = checkVersions(op.PurgeSecret.Token, nil, unknown(op.PurgeSecret))
		default:
			bad = "no operation"
		}
		if bad != "" {
			return bad
		}
		token := Token(operationToken(o))
		if named[token] {
			return "one secret twice in a transaction"
		}
		named[token] = true
	}
	if versions > MaxVersions {
		return "too many version numbers"
	}
	return ""
}

// operationToken is the secret that an operation names.
func operationToken(o *fsmpb.Operation) []byte {
	switch op := o.Op.(type) {
	case *fsmpb.Operation_PutSecret:
		return op.PutSecret.Token
	case *fsmpb.Operation_DeleteVersions:
		return op.DeleteVersions.Token
	case *fsmpb.Operation_DestroyVersions:
		return op.DestroyVersions.Token
	}
	return o.GetPurgeSecret().GetToken()
}

func checkVersions(token []byte, versions []uint64, unknown bool) string {
	switch {
	case unknown:
		return "unknown field"
	case len(token) != len(Token{}):
		return "token is not 32 bytes"
	case len(versions) > MaxVersions:
		return "too many version numbers"
	}
	return ""
}

func checkAnchor(peer, file string, head []byte, count, first uint64) string {
	switch {
	case peer == "" || len(peer) > MaxPeer:
		return "peer name empty or too long"
	case len(file) > MaxPeer:
		return "file name too long"
	case len(head) != 32:
		return "audit head is not 32 bytes"
	case count == 0 || first > count:
		return "audit counts do not fit"
	}
	return ""
}

func checkShareSet(s *fsmpb.ShareSet) string {
	switch {
	case s == nil:
		return "no share set"
	case unknown(s):
		return "unknown field"
	case !isID(s.Id):
		return "share set id not 16 bytes"
	case s.Shares == 0 || s.Shares > MaxShares || s.Threshold == 0 || s.Threshold > s.Shares:
		return "shares and threshold do not fit"
	case len(s.Fingerprints) != int(s.Shares) || len(s.Keepers) != int(s.Shares):
		return "not one fingerprint and keeper for each share"
	}
	for _, f := range s.Fingerprints {
		if len(f) != 32 {
			return "fingerprint is not 32 bytes"
		}
	}
	for _, k := range s.Keepers {
		if len(k) > MaxPeer {
			return "keeper name too long"
		}
	}
	return ""
}

func checkCommit(c *fsmpb.CommitShareSet) string {
	switch {
	case unknown(c):
		return "unknown field"
	case !isID(c.Id):
		return "share set id not 16 bytes"
	case len(c.Keyring) == 0 || len(c.Keyring) > MaxKeyring:
		return "keyring empty or too long"
	}
	return checkEpochs(c.Epochs)
}

func checkReplace(r *fsmpb.ReplaceKeyring) string {
	switch {
	case unknown(r):
		return "unknown field"
	case !isID(r.Committed):
		return "share set id not 16 bytes"
	case len(r.Replaces) != 32:
		return "hash of the keyring is not 32 bytes"
	case len(r.Keyring) == 0 || len(r.Keyring) > MaxKeyring:
		return "keyring empty or too long"
	}
	return checkEpochs(r.Epochs)
}

func checkReseal(r *fsmpb.Reseal) string {
	if unknown(r) {
		return "unknown field"
	}
	for _, v := range r.Versions {
		switch {
		case unknown(v):
			return "unknown field"
		case len(v.Token) != len(Token{}):
			return "token is not 32 bytes"
		case v.Revision == 0 || v.Version == 0:
			return "no revision or version"
		case len(v.Value) == 0 || len(v.Value) > MaxSecretValue:
			return "value empty or too long"
		}
	}
	for _, p := range r.Policies {
		switch {
		case unknown(p):
			return "unknown field"
		case len(p.Token) != len(Token{}):
			return "token is not 32 bytes"
		case p.Revision == 0:
			return "no revision"
		case len(p.Body) == 0 || len(p.Body) > MaxPolicyBody:
			return "policy body empty or too long"
		}
	}
	return ""
}

func checkEpochs(epochs []*fsmpb.Epoch) string {
	if len(epochs) > MaxEpochs {
		return "too many epochs"
	}
	for i, e := range epochs {
		if unknown(e) {
			return "unknown field"
		}
		if e.Purpose == "" || len(e.Purpose) > MaxKeyID || len(e.Id) == 0 || len(e.Id) > MaxKeyID {
			return "epoch purpose or id empty or too long"
		}
		for _, f := range epochs[:i] {
			if f.Purpose == e.Purpose {
				return "two epochs of one purpose"
			}
		}
	}
	return ""
}

// isID reports whether b is an identifier: 16 bytes, not all zero.
func isID(b []byte) bool { return len(b) == 16 && [16]byte(b) != [16]byte{} }

// withDefaults returns settings whose zero numbers are replaced by the defaults
// of the level, or why they cannot be.
func withDefaults(s *fsmpb.Settings) (*fsmpb.Settings, string) {
	if unknown(s) {
		return nil, "unknown field"
	}
	or := func(n, d uint64) uint64 {
		if n == 0 {
			return d
		}
		return n
	}
	r := &fsmpb.Settings{
		MaxVersions:      uint32(or(uint64(s.GetMaxVersions()), 10)),
		StateLimitBytes:  or(s.GetStateLimitBytes(), 1<<30),
		SecretLimitBytes: or(s.GetSecretLimitBytes(), 1<<20+256),
		WireRecovery:     s.GetWireRecovery(),
		IndexReads:       s.GetIndexReads(),
		WindowEntries:    or(s.GetWindowEntries(), 1<<18),
		WindowBytes:      or(s.GetWindowBytes(), 64<<20),
		Archive:          s.GetArchive(),
	}
	if bad := checkCare(r.Archive); bad != "" {
		return nil, bad
	}
	switch {
	case r.MaxVersions > MaxVersions:
		return nil, "too many versions to keep"
	case r.SecretLimitBytes > MaxSecretValue:
		return nil, "limit of a secret too high"
	case r.WindowEntries > MaxWindow || r.WindowBytes > maxWindowBytes || r.WindowBytes < minWindowBytes:
		return nil, "write-id window too large or too small"
	case r.StateLimitBytes > math.MaxInt64:
		return nil, "limit of the state too high"
	}
	return r, ""
}
