//go:build !linux

package seal

import "errors"

// ProtectProcess has no implementation on this system and says so.
func ProtectProcess() error {
	return errors.New("seal: this system offers no protection against core dumps and debuggers that we know how to ask for")
}
