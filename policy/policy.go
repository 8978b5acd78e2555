// Package policy decides: may this caller do this to this path?
//
// A decision is a pure function of the caller, the wanted rights, the path and
// a Set of policies; the package does no I/O and keeps no state beside the Set
// it is asked on. Deny is the default, roles and policies only add. A Set is
// immutable and safe for any number of goroutines: store publishes one with
// each view of the data, so that nobody can read data under other policies than
// those of the same view.
package policy

import (
	"sort"
	"sync"

	"github.com/spike-ha/spike-ha/secret"
)

// Compiled is one checked policy, ready for matching.
type Compiled struct {
	secret.Policy
	spiffe, path matcher
}

// Compile checks p: its name, both patterns and the permissions.
func Compile(p secret.Policy) (*Compiled, error) {
	if _, err := secret.ParseName("policy name", p.Name); err != nil {
		return nil, err
	}
	if p.Permissions == 0 {
		return nil, secret.Invalid("permissions", "a policy needs at least one permission")
	}
	spiffe, err := compile("SPIFFE id pattern", p.SPIFFEID)
	if err != nil {
		return nil, err
	}
	path, err := compile("path pattern", p.Path)
	if err != nil {
		return nil, err
	}
	return &Compiled{p, spiffe, path}, nil
}

// Set is an immutable collection of policies. The rules of one caller are
// selected once and kept, so that a decision costs the same with ten policies
// or with thousands.
type Set struct {
	byName  map[string]*Compiled
	callers sync.Map // caller id → *rules; at most maxCallers entries
	mu      sync.Mutex
	cached  int // guarded by mu
}

// maxCallers bounds the selections kept: an application has few identities, and
// a stranger with many must not fill the memory.
const maxCallers = 4096

// rules are the policies of one caller, by the literal that begins the paths.
type rules struct {
	byLiteral map[string][]*Compiled
	lengths   []int // of the literals, ascending, each once
}

// NewSet makes a set; of two policies of one name the later counts.
func NewSet(policies ...*Compiled) *Set {
	s := &Set{byName: make(map[string]*Compiled, len(policies))}
	for _, p := range policies {
		s.byName[p.Name] = p
	}
	return s
}

// With returns a set in which put replaces or joins its namesakes and the names
// in drop are gone. s is unchanged.
func (s *Set) With(put []*Compiled, drop []string) *Set {
	next := &Set{byName: make(map[string]*Compiled, len(s.byName)+len(put))}
	for name, p := range s.byName {
		next.byName[name] = p
	}
	for _, name := range drop {
		delete(next.byName, name)
	}
	for _, p := range put {
		next.byName[p.Name] = p
	}
	return next
}

// Get finds a policy by name.
func (s *Set) Get(name string) (secret.Policy, bool) {
	if p, ok := s.byName[name]; ok {
		return p.Policy, true
	}
	return secret.Policy{}, false
}

// List returns all policies, sorted by name.
func (s *Set) List() []secret.Policy {
	list := make([]secret.Policy, 0, len(s.byName))
	for _, p := range s.byName {
		list = append(list, p.Policy)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// Decision is an answer and what it rests on, for the audit record.
type Decision struct {
	Allowed bool
	By      string // "role superuser", "policy web-reader"; "" when denied
}

// Decide says whether caller has every right in wanted on path.
func (s *Set) Decide(caller secret.Caller, wanted secret.Permission, path secret.Path) Decision {
	if roleGrants(caller.Role, path) {
		return Decision{true, "role " + string(caller.Role)}
	}
	// The identities of the system itself are not applications: no policy,
	// however wide its pattern, gives one of them anything.
	switch caller.Role {
	case secret.RoleNone, secret.RoleAdmin, secret.RoleOperator, secret.RoleLite:
	default:
		return Decision{}
	}
	r := s.rulesOf(caller.ID)
	for _, n := range r.lengths {
		if n > len(path) {
			break
		}
		for _, p := range r.byLiteral[string(path[:n])] {
			if p.Permissions.Grants(wanted) && p.path.match(string(path)) {
				return Decision{true, "policy " + p.Name}
			}
		}
	}
	return Decision{}
}

// Reaches tells whether any policy gives caller the right on some path at all.
func (s *Set) Reaches(caller secret.Caller, wanted secret.Permission) bool {
	for _, list := range s.rulesOf(caller.ID).byLiteral {
		for _, p := range list {
			if p.Permissions.Grants(wanted) {
				return true
			}
		}
	}
	return false
}

func roleGrants(role secret.Role, path secret.Path) bool {
	switch role {
	case secret.RoleSuperuser:
		return true
	case secret.RoleAdmin:
		return path == secret.SystemPolicies
	case secret.RoleOperator:
		return !path.Reserved() || path == secret.SystemSecrets
	case secret.RoleLite:
		return path == secret.SystemCipher
	}
	return false
}

func (s *Set) rulesOf(id string) *rules {
	if r, ok := s.callers.Load(id); ok {
		return r.(*rules)
	}
	r := &rules{byLiteral: map[string][]*Compiled{}}
	for _, p := range s.byName {
		if p.spiffe.match(id) {
			r.byLiteral[p.path.literal] = append(r.byLiteral[p.path.literal], p)
		}
	}
	seen := map[int]bool{}
	for literal, list := range r.byLiteral {
		// By name, so that a decision always rests on the same policy.
		sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
		if !seen[len(literal)] {
			seen[len(literal)] = true
			r.lengths = append(r.lengths, len(literal))
		}
	}
	sort.Ints(r.lengths)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cached < maxCallers {
		if _, dup := s.callers.LoadOrStore(id, r); !dup {
			s.cached++
		}
	}
	return r
}
