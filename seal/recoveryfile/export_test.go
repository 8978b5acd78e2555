package recoveryfile

// PassphraseOf is Passphrase with a work factor that tests can wait for.
var PassphraseOf = passphraseOf
