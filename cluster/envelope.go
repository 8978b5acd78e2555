package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// An envelope is the data of one Raft entry: the commands of many proposals.
//
//	byte     format, now 1
//	uvarint  number of commands, 1..maxBatchCommands
//	         per command: uvarint length, bytes
//
// Nothing may follow. Numbers are in their shortest form, so that one list of
// commands has one encoding.
const envelopeFormat = 1

const (
	maxBatchCommands = 256
	maxBatchBytes    = 256 << 10 // of commands, unless a single one is larger
)

var (
	errEnvelopeFormat = errors.New("unknown format of log entry")
	errEnvelope       = errors.New("malformed log entry")
)

func encodeEnvelope(commands [][]byte) []byte {
	n := 1 + binary.MaxVarintLen64
	for _, c := range commands {
		n += binary.MaxVarintLen32 + len(c)
	}
	b := make([]byte, 0, n)
	b = append(b, envelopeFormat)
	b = binary.AppendUvarint(b, uint64(len(commands)))
	for _, c := range commands {
		b = binary.AppendUvarint(b, uint64(len(c)))
		b = append(b, c...)
	}
	return b
}

// decodeEnvelope returns slices into b.
func decodeEnvelope(b []byte) ([][]byte, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: empty", errEnvelope)
	}
	if b[0] != envelopeFormat {
		return nil, fmt.Errorf("%w: %d", errEnvelopeFormat, b[0])
	}
	b = b[1:]
	count, b, err := shortUvarint(b)
	if err != nil {
		return nil, err
	}
	if count == 0 || count > maxBatchCommands {
		return nil, fmt.Errorf("%w: %d commands", errEnvelope, count)
	}
	commands := make([][]byte, 0, count)
	for range count {
		var n uint64
		if n, b, err = shortUvarint(b); err != nil {
			return nil, err
		}
		if n > uint64(len(b)) {
			return nil, fmt.Errorf("%w: command of %d bytes in the last %d", errEnvelope, n, len(b))
		}
		commands = append(commands, b[:n:n])
		b = b[n:]
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", errEnvelope, len(b))
	}
	return commands, nil
}

func shortUvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n > 1 && b[n-1] == 0 {
		return 0, nil, fmt.Errorf("%w: bad number", errEnvelope)
	}
	return v, b[n:], nil
}
