"""Guest memory inside the encryption boundary: planes, page states, flips, dirty sets, the host's ciphertext view."""
