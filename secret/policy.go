package secret

import (
	"strings"
	"time"
)

// Version numbers the contents of one secret, from 1. 0 stands for "the current
// one" in requests and for "none" in answers.
type Version uint64

// Permission is a set of rights that a policy grants.
type Permission uint8

// The rights. Super implies all of them.
const (
	Read Permission = 1 << iota
	Write
	List
	Execute
	Super
)

var permissionNames = []struct {
	name string
	bit  Permission
}{{"read", Read}, {"write", Write}, {"list", List}, {"execute", Execute}, {"super", Super}}

// ParsePermissions reads a list of names; it must not be empty, and each must be known.
func ParsePermissions(names []string) (Permission, error) {
	var set Permission
next:
	for _, name := range names {
		for _, p := range permissionNames {
			if p.name == name {
				set |= p.bit
				continue next
			}
		}
		return 0, Invalid("permissions", "a permission is one of read, write, list, execute, super")
	}
	if set == 0 {
		return 0, Invalid("permissions", "a policy needs at least one permission")
	}
	return set, nil
}

// Grants tells whether the set covers every right in wanted.
func (p Permission) Grants(wanted Permission) bool {
	return p&Super != 0 || p&wanted == wanted
}

// Names lists the rights of the set, in a fixed order.
func (p Permission) Names() []string {
	names := make([]string, 0, len(permissionNames))
	for _, n := range permissionNames {
		if p&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// String joins the names with commas.
func (p Permission) String() string { return strings.Join(p.Names(), ",") }

// MatchKind says how a Pattern is read.
type MatchKind string

// The kinds. A pattern has one on purpose: an untyped pattern that is matched
// as a substring is how "system" once came to grant "spike/system/acl".
const (
	Exact  MatchKind = "exact"  // the text itself
	Prefix MatchKind = "prefix" // the text and, after a slash, everything below it
	Glob   MatchKind = "glob"   // '*' within a segment, '**' across segments
	Regexp MatchKind = "regexp" // a Go regular expression that matches the whole name
)

// Pattern selects SPIFFE ids or paths.
type Pattern struct {
	Kind MatchKind `json:"kind" yaml:"kind"`
	Text string    `json:"text" yaml:"text"`
}

// Policy grants Permissions on the paths that Path matches to the callers whose
// SPIFFE id SPIFFEID matches. Policies only allow; any one that matches suffices.
type Policy struct {
	Name        string
	SPIFFEID    Pattern
	Path        Pattern
	Permissions Permission
	CreatedAt   time.Time
	UpdatedAt   time.Time
}
