package seal

import (
	"errors"
	"fmt"
	"strings"
)

// What can be wrong, to be tested with errors.Is.
var (
	ErrSealed             = errors.New("seal: this process is sealed")
	ErrOperatorSealed     = errors.New("seal: an operator sealed the cluster; 'spikectl operator unseal' ends that")
	ErrOpen               = errors.New("seal: cannot open: wrong key, wrong place or altered bytes")
	ErrTooLarge           = errors.New("seal: too large")
	ErrPurpose            = errors.New("seal: the keyring has no key for this purpose")
	ErrAlreadyInitialised = errors.New("seal: the cluster is initialised already")
	ErrNotInitialised     = errors.New("seal: the cluster is not initialised yet")
	ErrSuperseded         = errors.New("seal: another initialisation, rekey or rotation overtook this one")
	ErrPending            = errors.New("seal: a share set is pending: run its initialisation or rekey again, or cancel it")
	ErrGivenUp            = errors.New("seal: the rekey failed and was taken back; nothing changed, and it can be run again")
	ErrShareSet           = errors.New("seal: impossible share set")
	ErrKeyring            = errors.New("seal: the keyring does not open under this root key")
	ErrRoot               = errors.New("seal: the shares do not give the root key that the share set was made from")
	ErrStaleState         = errors.New("seal: the keys held belong to another share set than the state given; unseal again")

	// Of Keepers.
	ErrNoShare    = errors.New("seal: the Keeper holds no share")
	ErrOtherSet   = errors.New("seal: the Keeper holds another share set of this cluster")
	ErrForeignSet = errors.New("seal: the Keeper serves another cluster; if that one is gone for good, restart the Keeper")
	ErrStale      = errors.New("seal: the Keeper has seen a later share set, or a higher incarnation, of this cluster")
	ErrOldKeeper  = errors.New("seal: the Keeper is of a release before this one, which does not know this question")
	ErrThrottled  = errors.New("seal: the Keeper was asked too often by this identity, and answers again in a moment")

	// Of shares fed by people.
	ErrWrongShare     = errors.New("seal: this is not the share of that index")
	ErrDuplicateShare = errors.New("seal: the share of that index was given already")
	ErrForeignShare   = errors.New("seal: this share belongs to another share set")
	ErrShareIndex     = errors.New("seal: no share has that index")
)

// NotEnoughError says that too few good shares were found. The reports name each Keeper's fault.
type NotEnoughError struct {
	Good, Needed int
	Reports      []KeeperReport
}

func (e *NotEnoughError) Error() string {
	return fmt.Sprintf("seal: %d of %d shares needed to unseal were found (%s); bring Keepers that have their shares back, or give recovery shares: 'spikectl operator restore'",
		e.Good, e.Needed, describe(e.Reports))
}

// PlacementError says which Keepers could not be given their share. Nothing was committed: run it again.
type PlacementError struct{ Reports []KeeperReport }

func (e *PlacementError) Error() string {
	return fmt.Sprintf("seal: not every Keeper took its share (%s); nothing is committed: put it right and run the same again", describe(e.Reports))
}

// describe lists the Keepers that are not good.
func describe(reports []KeeperReport) string {
	var b strings.Builder
	for _, r := range reports {
		if r.Health == Good {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s is %s", r.Name, r.Health)
		if r.Detail != "" {
			fmt.Fprintf(&b, ": %s", r.Detail)
		}
	}
	if b.Len() == 0 {
		return "no Keeper is at fault"
	}
	return b.String()
}
