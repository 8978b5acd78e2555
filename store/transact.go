package store

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
)

// Limits of a transaction, over all of its operations.
const (
	MaxOperations       = fsm.MaxOperations
	MaxTransactionBytes = 1 << 20 // of encoded values
)

// OpKind says what an operation of a transaction does.
type OpKind string

// The kinds.
const (
	OpPut     OpKind = "put"
	OpDelete  OpKind = "delete"
	OpDestroy OpKind = "destroy"
	OpPurge   OpKind = "purge"
)

// Op is one operation of a transaction.
type Op struct {
	Kind OpKind
	Path string
	// Values are what a put writes.
	Values map[string]string
	// Versions are those that delete and destroy are about, as in DeleteVersions
	// and DestroyVersions.
	Versions []secret.Version
	// Expect, when not nil, must be the current version (0: none is live).
	Expect *secret.Version
}

// Transacted is what a transaction came to: one entry per operation, in order,
// all of one Raft index.
type Transacted struct {
	Operations []Changed
	Index      uint64
}

// Transact makes all changes of the operations or none. Each names another
// secret; the caller must be allowed all of them. When a secret has moved
// meanwhile, everything is decided again, unless an operation expects a version
// that is no longer the current one: then CodeConflict, with the number of the
// operation. Errors that are about one operation carry its number.
func (s *Store) Transact(ctx context.Context, r Request, ops []Op) (Transacted, error) {
	const name = "secret.transact"
	t := &transaction{store: s, ops: ops}
	if err := t.measure(); err != nil {
		return Transacted{}, s.refuse(r, name, "", err)
	}
	defer t.wipe()
	fingerprint, err := t.encode()
	if err != nil {
		return Transacted{}, s.refuse(r, name, "", err)
	}
	c := change{op: name, fingerprint: [][]byte{fingerprint}, validate: t.validate, build: t.build}
	for _, o := range ops {
		c.acts = append(c.acts, act{op: "secret." + string(o.Kind), object: o.Path, on: decidable(o.Path), want: secret.Write})
	}
	result, err := s.change(ctx, r, c)
	if err != nil {
		return Transacted{}, err
	}
	if len(result.Operations) != len(ops) {
		return Transacted{}, unknownOutcome(fmt.Errorf("%d results of %d operations", len(result.Operations), len(ops)))
	}
	done := Transacted{Index: result.Index, Operations: make([]Changed, len(ops))}
	for i, o := range result.Operations {
		done.Operations[i] = Changed{secret.Version(o.Version), numbered(o.Versions), result.Index}
	}
	return done, nil
}

// transaction is one request's operations on their way.
type transaction struct {
	store  *Store
	ops    []Op
	plain  [][]byte // encoded values of puts
	tokens []fsm.Token
	keyIDs [][]byte
}

// measure checks the limits of the whole before anything is made of it.
func (t *transaction) measure() error {
	switch n := len(t.ops); {
	case n == 0:
		return secret.Invalid("operations", "a transaction has at least one operation")
	case n > MaxOperations:
		return errTransactionTooLarge(fmt.Sprintf("a transaction has at most %d operations", MaxOperations))
	}
	size, versions := 0, 0
	for i, o := range t.ops {
		switch o.Kind {
		case OpPut, OpDelete, OpDestroy, OpPurge:
		default:
			return ofOperation(i+1, secret.Invalid("op", "an operation is one of put, delete, destroy and purge"))
		}
		for key, value := range o.Values {
			size += len(key) + len(value)
		}
		versions += len(o.Versions)
	}
	if size > MaxTransactionBytes {
		return errTransactionTooLarge("the values of a transaction have at most 1 MiB in all")
	}
	if versions > maxVersionsNamed {
		return errTransactionTooLarge("a transaction names at most 1000 versions")
	}
	return nil
}

func errTransactionTooLarge(message string) error {
	return &secret.Error{Code: secret.CodeTooLarge, Subject: "operations", Message: message}
}

// encode makes the plaintexts, and what binds a write id to this request.
func (t *transaction) encode() ([]byte, error) {
	t.plain = make([][]byte, len(t.ops))
	var parts [][]byte
	size := 0
	for i, o := range t.ops {
		if o.Kind == OpPut {
			plain, err := encodeValues(o.Values)
			if err != nil {
				return nil, ofOperation(i+1, err)
			}
			t.plain[i] = plain
			if size += len(plain); size > MaxTransactionBytes {
				return nil, errTransactionTooLarge("the encoded values of a transaction have at most 1 MiB in all")
			}
		}
		var versions, expect []byte
		for _, v := range o.Versions {
			versions = binary.BigEndian.AppendUint64(versions, uint64(v))
		}
		if o.Expect != nil {
			expect = binary.BigEndian.AppendUint64(nil, uint64(*o.Expect))
		}
		parts = append(parts, []byte(o.Kind), []byte(o.Path), t.plain[i], versions, expect)
	}
	sum := hash("transaction", parts...)
	return sum[:], nil
}

func (t *transaction) wipe() {
	for _, plain := range t.plain {
		clear(plain)
	}
}

// validate is called once the caller is known to be allowed all operations.
func (t *transaction) validate() error {
	named := map[string]bool{}
	t.tokens, t.keyIDs = make([]fsm.Token, len(t.ops)), make([][]byte, len(t.ops))
	for i, o := range t.ops {
		err := writable(o.Path)
		switch {
		case err != nil:
		case named[o.Path]:
			err = secret.Invalid("path", "a transaction names a path once")
		case o.Kind == OpPut:
			err = secret.ParseValues(o.Values)
		case o.Values != nil:
			err = secret.Invalid("values", "only a put has values")
		case o.Kind == OpDestroy && len(o.Versions) == 0:
			err = secret.Invalid("versions", "name the versions to destroy")
		}
		if err == nil && len(o.Versions) > 0 && (o.Kind == OpPut || o.Kind == OpPurge) {
			err = secret.Invalid("versions", "only delete and destroy name versions")
		}
		if err == nil {
			t.tokens[i], t.keyIDs[i], err = t.store.cfg.Keys.Token(KindValue, o.Path)
		}
		if err != nil {
			return ofOperation(i+1, err)
		}
		named[o.Path] = true
	}
	return nil
}

func (t *transaction) build(p *published, now *fsmpb.Current) (*fsmpb.Command, error) {
	tx := &fsmpb.Transaction{Operations: make([]*fsmpb.Operation, len(t.ops))}
	for i := range t.ops {
		at := targetAt(p, t.tokens[i], t.keyIDs[i])
		if now != nil && i < len(now.Secrets) {
			c := now.Secrets[i]
			at.revision, at.current, at.next = c.Revision, c.CurrentVersion, c.NextVersion
		}
		operation, err := t.operation(i, at)
		if err != nil {
			return nil, ofOperation(i+1, err)
		}
		tx.Operations[i] = operation
	}
	return &fsmpb.Command{Op: &fsmpb.Command_Transaction{Transaction: tx}}, nil
}

func (t *transaction) operation(i int, at target) (*fsmpb.Operation, error) {
	o := t.ops[i]
	if err := at.expect(o.Expect); err != nil {
		return nil, err
	}
	if o.Kind == OpPut {
		put, err := t.store.sealPut(at, o.Path, t.plain[i])
		return &fsmpb.Operation{Op: &fsmpb.Operation_PutSecret{PutSecret: put}}, err
	}
	if at.revision == 0 {
		return nil, errNoSecret()
	}
	numbers := make([]uint64, len(o.Versions))
	for j, v := range o.Versions {
		numbers[j] = uint64(v)
	}
	switch o.Kind {
	case OpDelete:
		return &fsmpb.Operation{Op: &fsmpb.Operation_DeleteVersions{DeleteVersions: &fsmpb.DeleteVersions{Token: at.token[:], ExpectedRevision: at.revision, Versions: numbers}}}, nil
	case OpDestroy:
		return &fsmpb.Operation{Op: &fsmpb.Operation_DestroyVersions{DestroyVersions: &fsmpb.DestroyVersions{Token: at.token[:], ExpectedRevision: at.revision, Versions: numbers}}}, nil
	}
	return &fsmpb.Operation{Op: &fsmpb.Operation_PurgeSecret{PurgeSecret: &fsmpb.PurgeSecret{Token: at.token[:], ExpectedRevision: at.revision}}}, nil
}

// ofOperation says which operation of a transaction an error is about; 0 is none.
func ofOperation(number int, err error) error {
	e, ok := err.(*secret.Error)
	if !ok || number == 0 {
		return err
	}
	numbered := *e
	numbered.Operation = number
	numbered.Subject = fmt.Sprintf("operation %d", number)
	if e.Subject != "" {
		numbered.Subject += ", " + e.Subject
	}
	return &numbered
}
